// What grows at its end, which is kept in view from `toEnd` on until the reader scrolls up, and again
// when he has come back there.

const NEAR = 24;  // px above the end that still count as the end

export class Tail {
  isFollowing = false;

  // `changed` is called when the reader leaves the end, or comes back to it.
  constructor(element, changed = () => {}) {
    Object.assign(this, {element, changed});
    const below = () => element.scrollHeight - element.scrollTop - element.clientHeight;
    element.addEventListener("scroll", () => this.#follow(below() < NEAR));
    new ResizeObserver(() => this.grown()).observe(element);
  }

  // There is more to see.
  grown() {
    if (this.isFollowing) this.element.scrollTop = this.element.scrollHeight;
  }

  toEnd() {
    this.#follow(true);
    this.grown();
  }

  #follow(isFollowing) {
    if (isFollowing === this.isFollowing) return;
    this.isFollowing = isFollowing;
    this.changed();
  }
}
