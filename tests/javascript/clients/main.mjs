// node main.mjs <client> <start|startMended> <visit>=<url>...: the client at each of the URLs, and
// a line of JSON for whatever it tells.

const [name, variant, ...visits] = process.argv.slice(2);
const client = await import(`./${name}.mjs`);

for (const visit of visits) {
  const [, key, url] = /^(\w+)=(.+)$/.exec(visit);
  client[variant](url, (told, more = {}) => {
    console.log(JSON.stringify({ visit: key, told, ...more }));
  });
}
setInterval(() => {}, 60_000); // Node ends while only a reconnection is due
