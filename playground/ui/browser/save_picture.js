// Saves the chunk's plot as a PNG that carries its recipe: an iTXt chunk, as the PNG standard (third
// edition, 11.3.3.4) has it. playground/run_file.py reads it.
async () => {
  const plot = document.querySelector("#actions-plot .js-plotly-plot");
  const about = document.querySelector("#actions-words [data-file]");
  if (!plot || !about) return;

  // White paper behind the picture, whatever the page's theme: it goes into slides and papers.
  const layout = {
    ...plot.layout, paper_bgcolor: "white", plot_bgcolor: "white",
    font: { ...plot.layout.font, color: "#1B2027" },
  };
  const size = { format: "png", scale: 2, width: plot.clientWidth, height: plot.clientHeight };
  const url = await window.Plotly.toImage({ data: plot.data, layout }, size);
  const png = Uint8Array.from(atob(url.split(",")[1]), (letter) => letter.charCodeAt(0));

  const checksum = (bytes) => {
    let crc = ~0;
    for (const byte of bytes) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc >>> 0;
  };
  const number = (value) => new Uint8Array(new Uint32Array([value]).buffer).reverse();

  // Keyword, no compression, no language, no translated keyword, text.
  const body = new TextEncoder().encode(
    `iTXt${about.dataset.format}\0\0\0\0\0${about.dataset.recipe}`,
  );
  const end = png.length - 12; // before the last chunk, IEND
  const parts = [
    png.subarray(0, end), number(body.length - 4), body, number(checksum(body)), png.subarray(end),
  ];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type: "image/png" }));
  link.download = `${about.dataset.file}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
