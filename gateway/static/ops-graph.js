// Small graphs: a line over time, and the room below it. A hole in what is known is one in the line.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;

/**
 * It begins with room for `room` values and shows `most` in the end. Up to `least` what is highest
 * does not fill its height: little is to look like little.
 */
export function graph(room, {most = room, least = 1} = {}) {
  const svg = document.createElementNS(SVG, "svg");
  const area = document.createElementNS(SVG, "path");
  const line = document.createElementNS(SVG, "path");
  svg.setAttribute("class", "graph");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  area.setAttribute("class", "area");
  line.setAttribute("class", "line");
  svg.append(area, line);
  let shown = "";
  return {
    element: svg,
    show(values) {
      const seconds = Math.min(most, Math.max(room, values.length));
      const [lineOf, areaOf] = paths(values.slice(-seconds), seconds, least);
      if (lineOf === shown) return;
      shown = lineOf;
      svg.setAttribute("viewBox", `0 0 ${seconds - 1} ${HEIGHT}`);
      line.setAttribute("d", lineOf);
      area.setAttribute("d", areaOf);
    },
  };
}

/** The line and the area, as an SVG path each; the newest value is at the right. */
function paths(values, seconds, least) {
  const most = values.reduce((high, value) => Math.max(high, value ?? 0), least);
  const first = seconds - values.length;
  let line = "";
  let area = "";
  let from = null;
  let last = null;
  const close = () => {
    if (from !== null) area += `V${HEIGHT}H${from}Z`;
    from = null;
  };
  values.forEach((value, at) => {
    if (value == null) return close();
    const x = first + at;
    const y = (HEIGHT - value / most * (HEIGHT - 6) - 2).toFixed(1);
    if (from === null) area += `M${from = x} ${HEIGHT}L${x} ${y}`;
    else area += `L${x} ${y}`;
    line += `${last === x - 1 ? "L" : "M"}${x} ${y}`;
    last = x;
  });
  close();
  return [line, area];
}
