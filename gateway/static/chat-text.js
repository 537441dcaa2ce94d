// Text as it comes, shown with the little markup that models use: paragraphs, headings, lists, code,
// rules; bold, italic and code in a line.
//
// 1. Everything is a text node or an element that is named here: nothing that comes is ever HTML.
// 2. What is shown already stays as it is: nodes are changed where their text has grown, and are
//    made anew only where they have become something else. So a selection lives, and nothing flickers.
// 3. A block is settled when whole lines behind it have begun another one; only what is behind the
//    settled blocks is looked at again. What is shown in the end depends on the text alone, and not
//    on the pieces that it came in.

const FENCE = /^\s{0,3}```(.*)$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const RULE = /^\s{0,3}(?:-{3,}|\*{3,}|_{3,})\s*$/;
const BULLET = /^\s{0,3}[-*+]\s+(.*)$/;
const NUMBER = /^\s{0,3}(\d{1,9})[.)]\s+(.*)$/;

const CLOSED = /`([^`]+)`|\*\*(?=\S)([^]+?)\*\*|(?<![*\w])\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)/;
const OPEN = /`([^`]+)$|\*\*(?=\S)([^]+?)\*?$|(?<![*\w])\*(?=[^\s*])([^*]+)$/;
const INLINE = ["code", "strong", "em"];

export class Text {
  #element;
  #text = "";
  #from = 0;  // where the text begins that is not settled
  #settled = 0;  // how many blocks are

  constructor(element) {
    this.#element = element;
  }

  // All of the text; while more is to come, what is open at its end is shown as it will be closed.
  show(text, isGrowing) {
    if (!text.startsWith(this.#text)) this.#from = this.#settled = 0;
    this.#text = text;
    const nodes = blocks(text.slice(this.#from)).map((block, at, all) => drawn(block, isGrowing && at === all.length - 1));
    sync(this.#element, nodes, this.#settled);
    const whole = blocks(text.slice(this.#from, text.lastIndexOf("\n") + 1));
    if (whole.length < 2) return;
    this.#settled += whole.length - 1;
    this.#from += whole.at(-1).start;
  }
}

// The blocks of a text: {kind, start} and what is in them. A line belongs to one block, whatever follows.
export function blocks(text) {
  const found = [];
  let block = null;
  let start = 0;
  const begin = made => found.push(block = {...made, start});
  for (const line of text.split("\n")) {
    let match;
    if (block?.kind === "pre") {
      if (FENCE.test(line)) block = null;
      else block.lines.push(line);
    } else if ((match = FENCE.exec(line))) begin({kind: "pre", language: match[1].trim(), lines: []});
    else if (!line.trim()) block = null;
    else if ((match = HEADING.exec(line))) { begin({kind: "heading", lines: [match[2]]}); block = null; }
    else if (RULE.test(line)) { begin({kind: "hr"}); block = null; }
    else if ((match = BULLET.exec(line))) item("ul", match[1]);
    else if ((match = NUMBER.exec(line))) item("ol", match[2], Number(match[1]));
    else if (block) (block.items?.at(-1) ?? block.lines).push(line.trim());
    else begin({kind: "p", lines: [line.trim()]});
    start += line.length + 1;
  }
  return found;

  function item(kind, line, first) {
    if (block?.kind !== kind) begin({kind, first, items: []});
    block.items.push([line]);
  }
}

// A node to be: a string, or {tag, attributes, children}.
function drawn(block, isGrowing) {
  const node = (tag, children, attributes = {}) => ({tag, children, attributes});
  const text = (lines, isLast = true) => inline(lines.join("\n"), isGrowing && isLast);
  switch (block.kind) {
    case "pre": return node("pre", [node("code", [block.lines.join("\n")])], {"tabindex": "0", "data-language": block.language});
    case "heading": return node("h3", text(block.lines));
    case "hr": return node("hr", []);
    case "p": return node("p", text(block.lines));
    default: {
      const items = block.items.map((lines, at, all) => node("li", text(lines, at === all.length - 1)));
      return node(block.kind, items, block.first > 1 ? {start: String(block.first)} : {});
    }
  }
}

function inline(text, isGrowing) {
  const nodes = [];
  let rest = isGrowing ? text.replace(/(^|[\s(])(\*{1,2}|`)$/, "$1") : text;
  for (let match; (match = CLOSED.exec(rest) ?? (isGrowing ? OPEN.exec(rest) : null));) {
    if (match.index) nodes.push(rest.slice(0, match.index));
    const at = match.slice(1).findIndex(part => part !== undefined);
    nodes.push({tag: INLINE[at], attributes: {}, children: [match[at + 1]]});
    rest = rest.slice(match.index + match[0].length);
  }
  return rest ? [...nodes, rest] : nodes;
}

// Make the children of an element, from one of them on, these.
function sync(parent, nodes, from = 0) {
  nodes.forEach((node, at) => {
    const child = parent.childNodes[from + at];
    const isSame = child && (typeof node === "string" ? child.nodeType === Node.TEXT_NODE : child.localName === node.tag);
    const current = isSame ? child : made(node);
    if (!child) parent.append(current);
    else if (!isSame) child.replaceWith(current);
    if (typeof node === "string") write(current, node);
    else fill(current, node);
  });
  while (parent.childNodes.length > from + nodes.length) parent.lastChild.remove();
}

const made = node => typeof node === "string" ? document.createTextNode("") : document.createElement(node.tag);

function fill(element, {attributes, children}) {
  for (const [name, value] of Object.entries(attributes))
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  sync(element, children);
}

function write(node, text) {
  if (node.data === text) return;
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}
