// The tiles, coloured by a gene: one picture for a grid, single shapes for spots.
const NOTHING = [228, 231, 235]; // a tile without a value
const FADED = 0.12;
const SMALL = 3; // pixels, below which a spot is a dot
const UNKNOWN = 256;
const MANY = 20000; // spots that are not drawn one by one while they are dots
const WIDEST = 4096; // of the picture that stands for them

// Colours as 32-bit words, as they are and faded; red is the lowest byte
const packed = (colours) => [255, Math.round(255 * FADED)].map((alpha) => colours.map(([r, g, b]) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0));

const percentile = (sorted, share) => {
  const at = share * (sorted.length - 1);
  const below = Math.floor(at);
  return sorted[below] + (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below]) * (at - below);
};

// Lowest and highest value that get a colour of their own, always apart
export const range = (sorted, clip) => {
  if (!sorted.length) return [0, 1];
  let [low, high] = [percentile(sorted, clip / 100), percentile(sorted, 1 - clip / 100)];
  if (low === high) [low, high] = [sorted[0], sorted[sorted.length - 1]];
  return high > low ? [low, high] : [low, low + 1];
};

class Grid {
  constructor(grid, places) {
    Object.assign(this, grid);
    this.cells = new Int32Array(places.length / 2);
    this.tiles = new Int32Array(grid.columns * grid.rows).fill(-1);
    for (let i = 0; i < this.cells.length; i += 1) {
      this.cells[i] = this.cell(places[2 * i], places[2 * i + 1]);
      this.tiles[this.cells[i]] = i;
    }
    this.raster = new OffscreenCanvas(grid.columns, grid.rows);
    this.pixels = new ImageData(grid.columns, grid.rows);
  }

  cell(x, y) {
    return Math.round((y - this.y) / this.step) * this.columns + Math.round((x - this.x) / this.step);
  }

  find(x, y) {
    const [column, row] = [Math.round((x - this.x) / this.step), Math.round((y - this.y) / this.step)];
    return column < 0 || row < 0 || column >= this.columns || row >= this.rows ? -1 : this.tiles[row * this.columns + column];
  }

  colour(levels, faded, colours) {
    const [words, colour] = [new Uint32Array(this.pixels.data.buffer), packed(colours)];
    for (let i = 0; i < levels.length; i += 1) words[this.cells[i]] = colour[faded[i]][levels[i]];
    this.raster.getContext("2d").putImageData(this.pixels, 0, 0);
  }

  paint(context, camera) {
    const seen = camera.seen();
    const within = (value, first, end) => Math.max(0, Math.min(end, Math.round((value - first) / this.step)));
    const [left, top] = [within(seen.left, this.x, this.columns), within(seen.top, this.y, this.rows)];
    const [right, bottom] = [within(seen.right, this.x, this.columns - 1) + 1, within(seen.bottom, this.y, this.rows - 1) + 1];
    if (right <= left || bottom <= top) return;
    const corner = (column, row) => camera.toScreen(this.x + (column - 0.5) * this.step, this.y + (row - 0.5) * this.step);
    const [[a, b], [c, d]] = [corner(left, top), corner(right, bottom)];
    context.imageSmoothingEnabled = this.step * camera.scale < 1;
    context.drawImage(this.raster, left, top, right - left, bottom - top, a, b, c - a, d - b);
  }
}

class Spots {
  constructor(places, side, round) {
    Object.assign(this, { places, side, round });
    this.bins = new Map();
    for (let i = 0; i < places.length / 2; i += 1) {
      const key = this.bin(places[2 * i], places[2 * i + 1]).join();
      if (!this.bins.has(key)) this.bins.set(key, []);
      this.bins.get(key).push(i);
    }
  }

  bin(x, y) {
    return [Math.floor(x / this.side), Math.floor(y / this.side)];
  }

  find(x, y) {
    const [column, row] = this.bin(x, y);
    let [best, nearest] = [-1, Infinity];
    for (let dx = -1; dx <= 1; dx += 1) {
      for (let dy = -1; dy <= 1; dy += 1) {
        for (const i of this.bins.get(`${column + dx},${row + dy}`) ?? []) {
          const [u, v] = [Math.abs(this.places[2 * i] - x), Math.abs(this.places[2 * i + 1] - y)];
          const far = this.round ? Math.hypot(u, v) : Math.max(u, v);
          if (far < nearest && far <= this.side / 2) [best, nearest] = [i, far];
        }
      }
    }
    return best;
  }

  // Those of one colour stand together, to be drawn as one path
  colour(levels, faded, colours) {
    this.colours = colours;
    this.group = Uint16Array.from(levels, (level, i) => level + faded[i] * colours.length);
    const starts = new Int32Array(2 * colours.length + 1);
    this.group.forEach((g) => { starts[g + 1] += 1; });
    for (let g = 1; g < starts.length; g += 1) starts[g] += starts[g - 1];
    this.order = new Int32Array(levels.length);
    for (let i = 0; i < levels.length; i += 1) this.order[starts[this.group[i]]++] = i;
    if (levels.length > MANY) this.shrink(levels, faded, packed(colours));
  }

  // A pixel for each spot, where they are too small to have a shape
  shrink(levels, faded, colour) {
    const most = this.places.reduce((a, b) => Math.max(a, b), 0);
    this.cell = Math.max(this.side, most / WIDEST);
    const side = Math.floor(most / this.cell) + 1;
    const pixels = new ImageData(side, side);
    const words = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < levels.length; i += 1) {
      words[Math.floor(this.places[2 * i + 1] / this.cell) * side + Math.floor(this.places[2 * i] / this.cell)] = colour[faded[i]][levels[i]];
    }
    this.raster = new OffscreenCanvas(side, side);
    this.raster.getContext("2d").putImageData(pixels, 0, 0);
  }

  paint(context, camera) {
    const [size, seen] = [this.side * camera.scale, camera.seen()];
    if (this.raster && size < SMALL) {
      const [[a, b], [c, d]] = [camera.toScreen(0, 0), camera.toScreen(this.raster.width * this.cell, this.raster.height * this.cell)];
      context.drawImage(this.raster, a, b, c - a, d - b);
      return;
    }
    const [alpha, half] = [context.globalAlpha, Math.max(size, SMALL) / 2];
    let last = -1;
    const end = () => {
      if (last < 0) return;
      const faded = last >= this.colours.length;
      context.globalAlpha = faded ? alpha * FADED : alpha;
      context.fillStyle = `rgb(${this.colours[faded ? last - this.colours.length : last]})`;
      context.fill();
    };
    for (const i of this.order) {
      const [x, y] = [this.places[2 * i], this.places[2 * i + 1]];
      if (x + this.side < seen.left || x - this.side > seen.right || y + this.side < seen.top || y - this.side > seen.bottom) continue;
      if (this.group[i] !== last) {
        end();
        last = this.group[i];
        context.beginPath();
      }
      const [u, v] = camera.toScreen(x, y);
      if (this.round && size > SMALL) {
        context.moveTo(u + half, v);
        context.arc(u, v, half, 0, 2 * Math.PI);
      } else context.rect(u - half, v - half, 2 * half, 2 * half);
    }
    end();
    context.globalAlpha = alpha;
  }
}

export class Tiles {
  constructor(facts, places, novelty) {
    const { grid, side, shape } = facts.tiles;
    Object.assign(this, { places, novelty, side, round: shape === "circle", count: places.length / 2 });
    this.shapes = grid ? new Grid(grid, places) : new Spots(places, side, this.round);
    this.colours = [...facts.colours, NOTHING];
    this.show(null, [0, 1], null);
  }

  // Values may be null, which shows where the tiles are; tiles of a novelty above the limit are faded
  show(values, [low, high], limit) {
    const levels = new Uint16Array(this.count).fill(UNKNOWN);
    for (let i = 0; values && i < this.count; i += 1) {
      if (Number.isFinite(values[i])) levels[i] = Math.max(0, Math.min(255, Math.round((255 * (values[i] - low)) / (high - low))));
    }
    this.shapes.colour(levels, Uint8Array.from(this.novelty, (v) => (limit !== null && v > limit ? 1 : 0)), this.colours);
  }

  find(x, y) {
    return this.shapes.find(x, y);
  }

  paint(context, camera) {
    this.shapes.paint(context, camera);
  }

  outline(context, camera, i) {
    const [x, y] = camera.toScreen(this.places[2 * i], this.places[2 * i + 1]);
    const half = (this.side * camera.scale) / 2;
    [["#fff", 4], ["#1f2933", 1.5]].forEach(([colour, width]) => {
      Object.assign(context, { strokeStyle: colour, lineWidth: width });
      context.beginPath();
      if (this.round) context.arc(x, y, half, 0, 2 * Math.PI);
      else context.rect(x - half, y - half, 2 * half, 2 * half);
      context.stroke();
    });
  }
}
