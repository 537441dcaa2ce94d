// Elements and rows that are patched in place. What strangers chose becomes text, and nothing else.

export const $ = id => document.getElementById(id);

export function element(tag, name = "", ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

/** Only what has changed touches the page: a selection in the rest stays. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

export function explain(node, text) {
  if (node.title !== text) node.title = text;
}

/** Cells and rows say what they are themselves: on a phone they are no table to look at. */
export const cell = (title, name, ...children) => {
  const made = element("td", name, ...children);
  made.setAttribute("role", "cell");
  made.dataset.title = title;
  return made;
};

export const row = (name, ...cells) => {
  const made = element("tr", name, ...cells);
  made.setAttribute("role", "row");
  return made;
};

/** A bar of what is used of a whole; `part` is from 0 to 1. */
export function bar() {
  const filled = element("span", "filled");
  const whole = element("span", "meter", filled);
  whole.setAttribute("aria-hidden", "true");
  return {
    element: whole,
    show(part, tone = "") {
      filled.style.width = `${(Math.min(1, part) * 100).toFixed(1)}%`;
      mark(whole, "tone", tone);
    },
  };
}

/**
 * Rows of a list or of a table's body, by the names of their items. A row stays the same element
 * for as long as it is shown. Where they are `held` they also stay where they are while somebody
 * points at the list or has the focus in it: nobody hits the one that has just moved there.
 */
export class Rows {
  #parent;
  #name;
  #make;
  #holds;
  #rows = new Map();

  /** `make(item)` returns `{element, show(item)}`. */
  constructor(parent, name, make, {held = false} = {}) {
    this.#parent = parent;
    this.#name = name;
    this.#make = make;
    this.#holds = held;
  }

  /** Whether rows are held where they would not be otherwise. */
  show(items) {
    const wanted = new Map(items.map(item => [this.#name(item), item]));
    for (const [name, {element}] of this.#rows) {
      if (wanted.has(name)) continue;
      if (element.contains(document.activeElement)) this.#leave(element);
      element.remove();
      this.#rows.delete(name);
    }
    const held = this.#isHeld();
    let next = this.#parent.firstElementChild;
    let elsewhere = false;
    for (const [name, item] of wanted) {
      const known = this.#rows.get(name);
      const row = known ?? this.#make(item);
      row.show(item);
      this.#rows.set(name, row);
      if (row.element === next) {
        next = next.nextElementSibling;
      } else if (!held) {
        this.#parent.insertBefore(row.element, next);
      } else {
        elsewhere = true;
        if (!known) this.#parent.append(row.element);
      }
    }
    return elsewhere;
  }

  #isHeld() {
    if (!this.#holds) return false;
    return this.#parent.matches(":focus-within") || matchMedia("(hover: hover)").matches && this.#parent.matches(":hover");
  }

  /** The row is about to go: what is beside it takes the focus. */
  #leave(gone) {
    const beside = gone.nextElementSibling ?? gone.previousElementSibling;
    beside?.querySelector("button")?.focus({preventScroll: true});
  }
}

/** The arrow keys go from row to row, to the same button of each. */
export function walk(list) {
  list.addEventListener("keydown", event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    const from = event.target.closest("button");
    if (!step || !from) return;
    const row = from.closest("tr, li");
    const at = [...row.querySelectorAll("button")].indexOf(from);
    for (let next = row; (next = step > 0 ? next.nextElementSibling : next.previousElementSibling);) {
      const buttons = next.querySelectorAll("button");
      if (!buttons.length) continue;
      event.preventDefault();
      buttons[Math.min(at, buttons.length - 1)].focus();
      return;
    }
  });
}
