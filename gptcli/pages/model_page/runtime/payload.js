/* Reads the payload of a page: a JSON header and tensors, compressed together, in base64.

   gptcli/pages/model_page/payload.py writes it and describes its layout. */

/** The bytes that a text in base64 stands for. */
function fromBase64(text) {
  const binary = atob(text.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** The decompressed bytes of data that zlib compressed. */
async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The header and the sections of a payload: {header, section(name) -> Uint8Array}. */
async function readPayload(text) {
  const bytes = await inflated(fromBase64(text));
  const size = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
  const section = (name) => {
    const [at, length] = header.sections[name];
    return bytes.subarray(4 + size + at, 4 + size + at + length);
  };
  return { header, section };
}

/** Writes the matrix `name` to `out` as float32. The payload holds int8 numbers, and a scale for
    each 32 inputs. Each row of `out` has `stride` numbers. */
function dequantise(section, name, rows, stride, out) {
  const whole = section(`${name}.int8`);
  const weights = new Int8Array(whole.buffer, whole.byteOffset, whole.length);
  const scales = bfloat16(section(`${name}.scales`));
  for (let group = 0, at = 0; at < rows * stride; group++) {
    const scale = scales[group];
    for (const end = at + 32; at < end; at++) out[at] = weights[at] * scale;
  }
}

/** The bfloat16 numbers of a section as float32. The section holds the low bytes of all numbers,
    then their high bytes. */
function bfloat16(bytes) {
  const count = bytes.length / 2;
  const bits = new Uint32Array(count);
  for (let i = 0; i < count; i++) bits[i] = (bytes[i] << 16) | (bytes[count + i] << 24);
  return new Float32Array(bits.buffer);
}

/** The float32 numbers of a section. */
function float32(bytes) {
  return new Float32Array(bytes.slice().buffer);
}
