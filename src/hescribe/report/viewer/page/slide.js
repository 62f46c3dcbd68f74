// The slide's pictures: fetched when seen, the newest wishes first, and forgotten when long unseen.
const MOST = 240; // kept, 1 MB each
const AT_ONCE = 6;

export class Slide {
  constructor(facts, changed, failed) {
    Object.assign(this, { width: facts.width, height: facts.height, ...facts.pictures, changed, failed });
    this.kept = new Map();
    this.wanted = [];
    this.loading = 0;
  }

  // Coarse pictures first, finer ones over them as far as they have come
  paint(context, camera, ratio) {
    const seen = camera.seen();
    const level = Math.max(0, Math.min(this.levels - 1, Math.floor(-Math.log2(camera.scale * ratio) + 0.3)));
    const wanted = [];
    context.imageSmoothingEnabled = camera.scale < 3;
    for (let k = this.levels - 1; k >= level; k -= 1) {
      const side = this.side * 2 ** k;
      const [left, right] = [Math.max(0, Math.floor(seen.left / side)), Math.min(Math.ceil(this.width / side), Math.ceil(seen.right / side))];
      const [top, bottom] = [Math.max(0, Math.floor(seen.top / side)), Math.min(Math.ceil(this.height / side), Math.ceil(seen.bottom / side))];
      for (let row = top; row < bottom; row += 1) {
        for (let column = left; column < right; column += 1) {
          const key = `${k}/${column}/${row}`;
          const picture = this.kept.get(key);
          if (picture) this.draw(context, camera, picture, key, column * side, row * side, side);
          else if (!this.kept.has(key) && (k === level || k === this.levels - 1)) wanted.push(key);
        }
      }
    }
    this.wanted = wanted;
    this.load();
    return !wanted.length && !this.loading;
  }

  draw(context, camera, picture, key, x, y, side) {
    this.kept.delete(key); // to the end: used last
    this.kept.set(key, picture);
    const [left, top] = camera.toScreen(x, y);
    const [right, bottom] = camera.toScreen(Math.min(x + side, this.width), Math.min(y + side, this.height));
    // Whole pixels, so that no seam shows between neighbours
    const [a, b] = [Math.round(left), Math.round(top)];
    context.drawImage(picture, a, b, Math.round(right) - a, Math.round(bottom) - b);
  }

  load() {
    while (this.loading < AT_ONCE && this.wanted.length) {
      const key = this.wanted.pop();
      if (!this.kept.has(key)) this.fetch(key);
    }
  }

  async fetch(key) {
    this.loading += 1;
    this.kept.set(key, null);
    const image = new Image();
    image.src = `slide/${key}`;
    try {
      await image.decode();
      this.kept.set(key, image);
    } catch {
      this.failed();
    }
    while (this.kept.size > MOST) this.kept.delete(this.kept.keys().next().value);
    this.loading -= 1;
    this.changed();
  }
}
