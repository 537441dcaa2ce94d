// What all parts of the page need: its elements, and questions to the node with the page's token.

export const $ = id => document.getElementById(id);
export const value = id => $(id).value.trim();
export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

export const amount = number => number.toLocaleString("en");
export const counted = (number, noun) => `${amount(number)} ${noun}${number === 1 ? "" : "s"}`;

export function parse(json) {
  try { return JSON.parse(json); } catch { return null; }
}

export function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

export function authorization() {
  return value("token") ? {Authorization: `Bearer ${value("token")}`} : {};
}

export async function refusal(response) {
  const problem = parse(await response.text());
  return `${response.status}: ${problem?.detail ?? problem?.title ?? response.statusText}${help(response.status)}`;
}

export function help(status) {
  return status === 401 ? ` Put ${value("token") ? "another" : "a"} token into the field Token.` : "";
}

// What the node answers, as text; an Error with its sentence where it refuses.
export async function ask(path, {headers, ...options} = {}) {
  const response = await fetch(path, {cache: "no-store", ...options, headers: {...headers, ...authorization()}});
  if (response.ok) return response.text();
  throw new Error(await refusal(response));
}

export async function answered(output, asking) {
  try {
    output.textContent = await asking;
    output.dataset.outcome = "accepted";
  } catch (error) {
    output.textContent = error.message;
    output.dataset.outcome = "refused";
  }
}

// A word for a shell.
export const quote = text => `'${text.replaceAll("'", `'\\''`)}'`;

// The clipboard exists on https and localhost only; elsewhere the selected line is left to Ctrl+C.
export async function copied(button, line) {
  getSelection().selectAllChildren(line);
  const isCopied = await navigator.clipboard?.writeText(line.textContent).then(() => true, () => false);
  button.textContent = isCopied ? "Copied" : "Selected";
  await sleep(1500);
  button.textContent = "Copy";
}
