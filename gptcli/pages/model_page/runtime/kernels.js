/* Multiplies matrices by vectors in float32: in WebAssembly SIMD, which this file assembles, or in
   JavaScript.

   WebAssembly and JavaScript use the same layout of a matrix: the number of rows is padded to a
   multiple of 4, and the number of columns to a multiple of 8. In matrices that the method `matrix`
   makes, the number of columns is padded to a multiple of 32. */

const padded = (count, unit) => Math.ceil(count / unit) * unit;

class Kernels {
  /** Allocates memory for `floats` numbers. `simd` says whether to try WebAssembly. */
  constructor(floats, simd = true) {
    this.used = 0;
    this.run = null;
    if (simd) {
      try {
        const memory = new WebAssembly.Memory({ initial: Math.ceil((floats * 4) / 65536) + 1 });
        const module = new WebAssembly.Module(simdModule());
        this.run = new WebAssembly.Instance(module, { page: { memory } }).exports.multiply;
        this.buffer = memory.buffer;
      } catch {
        this.run = null; // the browser has no SIMD, or a policy forbids WebAssembly
      }
    }
    if (this.run === null) this.buffer = new ArrayBuffer(floats * 4);
    this.name = this.run === null ? "JavaScript" : "WebAssembly SIMD";
  }

  /** A new array of zeros in the kernels' memory, padded to a multiple of `unit` numbers. */
  array(count, unit = 32) {
    const array = new Float32Array(this.buffer, this.used * 4, padded(count, unit));
    this.used += array.length;
    return array;
  }

  /** A new matrix of zeros: {data, rows, columns, stride}. */
  matrix(rows, columns) {
    const stride = padded(columns, 32);
    return { data: this.array(padded(rows, 4) * stride), rows, columns, stride };
  }

  /** y = matrix times x. x has matrix.stride numbers: matrix.columns values, then zeros. */
  multiply({ data, rows, stride }, x, y) {
    this.product(data, rows, stride, stride, x, y);
  }

  /** y = A x. A has `rows` rows of `columns` numbers. The rows begin `stride` numbers apart in
      `data`. `rows` is rounded up to a multiple of 4, and `columns` to a multiple of 8. So y and A
      must have room for the added rows and columns, and x must have zeros in the added columns. */
  product(data, rows, stride, columns, x, y) {
    if (this.run !== null) {
      const wide = (columns + 7) & -8;
      this.run(data.byteOffset, x.byteOffset, y.byteOffset, (rows + 3) & -4, stride, wide);
      return;
    }
    for (let row = 0; row < rows; row++) {
      let a = 0;
      let b = 0;
      let c = 0;
      let d = 0;
      for (let i = 0, at = row * stride; i < columns; i += 4, at += 4) {
        a += data[at] * x[i];
        b += data[at + 1] * x[i + 1];
        c += data[at + 2] * x[i + 2];
        d += data[at + 3] * x[i + 3];
      }
      y[row] = a + b + (c + d);
    }
  }
}

/** The number of floats in memory that `matrix(rows, columns)` takes. */
const matrixFloats = (rows, columns) => padded(rows, 4) * padded(columns, 32);

/** The bytes of a WebAssembly module with one function, which takes six integers: multiply(weights,
    x, y, rows, stride, columns). It computes Kernels.product, four rows at a time.

    Addresses count bytes. Source of the binary format: WebAssembly Core Specification, chapter 5.
    */
function simdModule() {
  const number = (value) => {
    const bytes = []; // the format signed LEB128
    for (;;) {
      const low = value & 0x7f;
      value >>= 7;
      if ((value === 0 && !(low & 0x40)) || (value === -1 && low & 0x40)) return [...bytes, low];
      bytes.push(low | 0x80);
    }
  };
  const count = (value) => (value < 128 ? [value] : [(value & 0x7f) | 0x80, ...count(value >> 7)]);
  const section = (id, bytes) => [id, ...count(bytes.length), ...bytes];
  const name = (text) => [text.length, ...Array.from(text, (char) => char.charCodeAt(0))];

  const I32 = 0x7f;
  const V128 = 0x7b;
  const get = (local) => [0x20, local];
  const set = (local) => [0x21, local];
  const constant = (value) => [0x41, ...number(value)];
  const simd = (code) => [0xfd, ...count(code)];
  const [add, subtract, multiply, shiftLeft] = [[0x6a], [0x6b], [0x6c], [0x74]];
  const load = (address, offset) => [...get(address), ...simd(0x00), 4, ...count(offset)];
  const [splat, addFloats, multiplyFloats, shuffle] = [0x13, 0xe4, 0xe6, 0x0d].map(simd);
  const storeVector = (offset) => [...simd(0x0b), 4, ...count(offset)];
  const plus = (local, bytes) => [...get(local), ...bytes, ...add, ...set(local)];
  const loop = (body, counter) => [0x03, 0x40, ...body, ...get(counter), 0x0d, 0, 0x0b];

  // The indices of the six parameters and of the locals. Some locals are integers: an address in x,
  // the number of remaining columns, the bytes of a row, and the addresses of four rows. The others
  // are vectors: two sums for each of the four rows, and two parts of x.
  const [WEIGHTS, X, Y, ROWS, STRIDE, COLUMNS, AT, LEFT, ROW_BYTES] = Array(9).keys();
  const rowAt = (r) => 9 + r;
  const sum = (r, half) => 13 + 2 * r + half;
  const part = (half) => 21 + half;
  const four = [0, 1, 2, 3];

  const products = [];
  for (const half of [0, 1]) products.push(...load(AT, 16 * half), ...set(part(half)));
  for (const r of four)
    for (const half of [0, 1])
      products.push(
        ...load(rowAt(r), 16 * half),
        ...get(part(half)),
        ...multiplyFloats,
        ...get(sum(r, half)),
        ...addFloats,
        ...set(sum(r, half)),
      );
  for (const r of four) products.push(...plus(rowAt(r), constant(32)));
  products.push(...plus(AT, constant(32)));
  products.push(...get(LEFT), ...constant(8), ...subtract, ...set(LEFT));

  // Sums the four lanes of each of four vectors, and puts the four sums into one vector. This takes
  // two rounds of shuffles (`pair`).
  const lanes = (vectors, pick) => [
    ...get(vectors[0]),
    ...get(vectors[1]),
    ...shuffle,
    ...pick.flatMap((lane) => four.map((byte) => 4 * lane + byte)),
  ];
  const pair = (a, b) => [
    ...lanes([a, b], [0, 2, 4, 6]),
    ...lanes([a, b], [1, 3, 5, 7]),
    ...addFloats,
  ];
  const total = [];
  for (const r of four)
    total.push(...get(sum(r, 0)), ...get(sum(r, 1)), ...addFloats, ...set(sum(r, 0)));
  total.push(...pair(sum(0, 0), sum(1, 0)), ...set(part(0)));
  total.push(...pair(sum(2, 0), sum(3, 0)), ...set(part(1)));

  const fourRows = [
    ...get(WEIGHTS),
    ...set(rowAt(0)),
    ...[1, 2, 3].flatMap((r) => [
      ...get(rowAt(r - 1)),
      ...get(ROW_BYTES),
      ...add,
      ...set(rowAt(r)),
    ]),
    ...get(X),
    ...set(AT),
    ...get(COLUMNS),
    ...set(LEFT),
    ...four.flatMap((r) =>
      [0, 1].flatMap((half) => [
        0x43, // f32.const 0
        0,
        0,
        0,
        0,
        ...splat,
        ...set(sum(r, half)),
      ]),
    ),
    ...loop(products, LEFT),
    ...total,
    ...get(Y),
    ...pair(part(0), part(1)),
    ...storeVector(0),
    ...plus(Y, constant(16)),
    ...plus(WEIGHTS, [...get(ROW_BYTES), ...constant(2), ...shiftLeft]),
    ...get(ROWS),
    ...constant(4),
    ...subtract,
    ...set(ROWS),
  ];
  const body = [
    2, // two groups of locals: 7 integers and 10 vectors
    7,
    I32,
    10,
    V128,
    ...get(STRIDE),
    ...constant(4),
    ...multiply,
    ...set(ROW_BYTES),
    ...loop(fourRows, ROWS),
    0x0b,
  ];
  return Uint8Array.from([
    0,
    0x61,
    0x73,
    0x6d,
    1,
    0,
    0,
    0,
    ...section(1, [1, 0x60, 6, I32, I32, I32, I32, I32, I32, 0]),
    ...section(2, [1, ...name("page"), ...name("memory"), 0x02, 0x00, 1]),
    ...section(3, [1, 0]),
    ...section(7, [1, ...name("multiply"), 0x00, 0]),
    ...section(10, [1, ...count(body.length), ...body]),
  ]);
}
