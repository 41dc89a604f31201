// One side of a mask: where its blocks and cells lie.

const LEAST = 24; // px that a block gets at least when blocks are drawn evenly

/** Places of cells along one side: segments of blocks, each with its own scale. */
class Axis {
  constructor(segments, length, evenly) {
    this.length = length;
    this.order = segments.flatMap(({ start, stop }) => Array.from({ length: stop - start }, (_, i) => start + i));
    this.rank = new Map(this.order.map((cell, i) => [cell, i]));
    const least = evenly ? Math.min(LEAST, length / segments.length) : 0;
    const weights = segments.map(({ start, stop }) => (evenly ? Math.sqrt(stop - start) : stop - start));
    const whole = weights.reduce((a, b) => a + b, 0);
    let from = 0;
    this.segments = segments.map((segment, i) => {
      const size = least + ((length - least * segments.length) * weights[i]) / whole;
      const placed = { ...segment, from, size, scale: size / (segment.stop - segment.start) };
      from += size;
      return placed;
    });
  }

  /** The cell at a place, the nearest one outside. */
  cellAt(place) {
    const after = this.segments.findIndex(({ from, size }) => place < from + size);
    const segment = this.segments[after < 0 ? this.segments.length - 1 : after];
    const cell = segment.start + Math.floor((place - segment.from) / segment.scale);
    return Math.min(segment.stop - 1, Math.max(segment.start, cell));
  }

  segmentOf(cell) {
    return this.segments.find(({ start, stop }) => cell >= start && cell < stop);
  }

  /** [from, size] of a cell. */
  span(cell) {
    const { start, from, scale } = this.segmentOf(cell);
    return [from + (cell - start) * scale, scale];
  }

  neighbour(cell, step) {
    const last = this.order.length - 1;
    return this.order[Math.min(last, Math.max(0, this.rank.get(cell) + step))];
  }
}
