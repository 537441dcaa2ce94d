// What is said aloud of an answer that is being written: whole sentences, not oftener than EVERY.

const EVERY = 4000;  // ms
const MOST = 600;  // characters at once; of more, the last

const SENTENCES = /^[^]*[.!?:;\n](?=\s|$)/;

export class Voice {
  #said = 0;  // how much of the text was
  #next = 0;  // when something may be said again, by performance.now()

  constructor(element) {
    this.element = element;
  }

  // With a text of which so many characters need not be said; all that is there at first, with null.
  begin(said) {
    this.#said = said;
    this.#next = performance.now() + EVERY;
  }

  follow(text) {
    this.#said ??= text.length;
    if (performance.now() < this.#next) return;
    const sentences = SENTENCES.exec(text.slice(this.#said))?.[0];
    if (!sentences) return;
    this.#said += sentences.length;
    this.#say(sentences);
  }

  end(text, how) {
    this.#said ??= text.length;
    this.#say(`${text.slice(this.#said)} ${how}`);
    this.#said = text.length;
  }

  #say(text) {
    this.#next = performance.now() + EVERY;
    this.element.textContent = text.replace(/[*`#]+/g, "").slice(-MOST).trim();
  }
}
