// The cells of a mask, as playground/views/mask.py sends them.

/** Codes of all cells, row by row. */
function cellCodes({ shape: [rows, columns], patterns, rows: patternOf }) {
  const codes = new Uint8Array(rows * columns);
  patternOf.forEach((pattern, r) => {
    let c = r * columns;
    const runs = patterns[pattern];
    for (let i = 0; i < runs.length; i += 2) {
      codes.fill(runs[i], c, c + runs[i + 1]);
      c += runs[i + 1];
    }
  });
  return codes;
}

/** Segments of one side: blocks within [from, to), without padding queries unless asked for. */
function segmentsOf({ blocks, padding }, from, to, skipPadding) {
  const holes = skipPadding ? padding : [];
  return blocks.flatMap((block) => {
    let pieces = [[Math.max(block.start, from), Math.min(block.stop, to)]];
    for (const [start, stop] of holes)
      pieces = pieces.flatMap(([a, b]) => [[a, Math.min(b, start)], [Math.max(a, stop), b]]);
    return pieces.filter(([a, b]) => a < b).map(([start, stop]) => ({ block, start, stop }));
  });
}

/** A CSS colour as image data holds it, in one number. */
function word(colour) {
  return new Uint32Array(pixel(colour).buffer)[0];
}

/** A canvas of one pixel a cell; colours: by code, as `word` gives them. */
function bitmap(width, height, codes, colours) {
  const canvas = make("canvas", { width, height });
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colours[codes[i]];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** What a cut calls a block. */
function nameOf({ name, kind }) {
  return kind === "generated" ? "actions" : name;
}

/** Whether a cut, as text like "actions>images:1,3", is of these blocks. */
function covers(text, query, key) {
  const [one, other] = text.split(":")[0].split(">");
  const named = (name, block) => name === nameOf(block) || (name === "images" && block.kind === "image");
  return named(one, query) && named(other, key);
}

/** Lines over a rectangle, `apart` pixels apart; the caller clips them to it. */
function crossHatch(context, x, y, width, height, ink, apart) {
  context.strokeStyle = ink;
  context.globalAlpha = 0.75;
  context.lineWidth = 1.5;
  context.beginPath();
  for (let from = x - height; from < x + width; from += apart) {
    context.moveTo(from, y);
    context.lineTo(from + height, y + height);
  }
  context.stroke();
  context.globalAlpha = 1;
}
