// gzip files of several members (bgzip, parts put together) and with zeros after them, which infer.py reads as one file
// and the DecompressionStream of browsers refuses. Written after RFC 1951 and 1952.
"use strict";

const LENGTHS = [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
const LENGTH_BITS = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
const DISTANCES = [1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577];
const ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];  // in which lengths of codes are given
const ENDED = "Compressed file ended before the end-of-stream marker was reached";  // Python's words
const CRC = Int32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; ++k) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});
const CRCS = [CRC];  // of a byte and so many zeros after it
while (CRCS.length < 8) CRCS.push(CRCS.at(-1).map((sum) => CRC[sum & 255] ^ (sum >>> 8)));

// All members of a gzip file, one after another; zeros between and after them are passed over.
function gunzipMembers(content) {
  const from = new Bits(content), to = new Growing(4 * content.length);
  while (from.at < content.length) {
    skipHeader(from);
    const start = to.length;
    inflate(from, to);
    from.toByte();
    const sum = from.word(), size = from.word();
    if (sum !== crc32(to.bytes.subarray(start, to.length))) throw new Error("CRC check failed");
    if (size !== (to.length - start) % 2 ** 32) throw new Error("Incorrect length of data produced");
    while (from.at < content.length && content[from.at] === 0) ++from.at;
  }
  return to.bytes.slice(0, to.length);
}

// The CRC-32 of bytes, eight at a time, which takes a third of the time.
function crc32(bytes) {
  const [c0, c1, c2, c3, c4, c5, c6, c7] = CRCS, eights = bytes.length - bytes.length % 8;
  let sum = -1, i = 0;
  for (; i < eights; i += 8)
    sum = c7[(sum ^ bytes[i]) & 255] ^ c6[((sum >>> 8) ^ bytes[i + 1]) & 255] ^ c5[((sum >>> 16) ^ bytes[i + 2]) & 255]
      ^ c4[(sum >>> 24) ^ bytes[i + 3]] ^ c3[bytes[i + 4]] ^ c2[bytes[i + 5]] ^ c1[bytes[i + 6]] ^ c0[bytes[i + 7]];
  for (; i < bytes.length; ++i) sum = CRC[(sum ^ bytes[i]) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

function skipHeader(from) {
  if (from.byte() !== 0x1f || from.byte() !== 0x8b) throw new Error("Not a gzipped file");
  if (from.byte() !== 8) throw new Error("Unknown compression method");
  const flags = from.byte();
  from.skip(6);
  if (flags & 4) from.skip(from.byte() + 256 * from.byte());
  for (const named of [8, 16]) if (flags & named) while (from.byte() !== 0);  // the file's name, a comment
  if (flags & 2) from.skip(2);
}

// Bytes that are read bit by bit, the lowest first.
class Bits {
  constructor(bytes) {
    this.bytes = bytes, this.at = 0, this.held = 0, this.count = 0;
  }

  byte() {
    if (this.at >= this.bytes.length) throw new Error(ENDED);
    return this.bytes[this.at++];
  }

  word() {
    return (this.byte() + (this.byte() << 8) + (this.byte() << 16) + (this.byte() << 24)) >>> 0;
  }

  skip(n) {
    if (this.at + n > this.bytes.length) throw new Error(ENDED);
    this.at += n;
  }

  take(n) {
    while (this.count < n) this.held |= this.byte() << this.count, this.count += 8;
    const value = this.held & ((1 << n) - 1);
    this.held >>>= n, this.count -= n;
    return value;
  }

  // The next symbol of a code; at the end of the file, bits that are looked at and not taken are zero.
  symbol({ table, longest }) {
    while (this.count < longest && this.at < this.bytes.length) this.held |= this.bytes[this.at++] << this.count, this.count += 8;
    const found = table[this.held & ((1 << longest) - 1)], n = found & 15;
    if (!n) throw new Error("Error -3 while decompressing data: invalid code");
    if (n > this.count) throw new Error(ENDED);
    this.held >>>= n, this.count -= n;
    return found >>> 4;
  }

  // To the next whole byte; what was looked at and not taken is given back.
  toByte() {
    this.at -= this.count >> 3;
    this.held = this.count = 0;
  }
}

// Bytes that grow.
class Growing {
  constructor(room) {
    this.bytes = new Uint8Array(room), this.length = 0;
  }

  reserve(n) {
    if (this.length + n <= this.bytes.length) return;
    const larger = new Uint8Array(2 * (this.length + n));
    larger.set(this.bytes.subarray(0, this.length)), this.bytes = larger;
  }
}

// The code whose symbols have these lengths: for each run of bits that may come next, the symbol and its length.
function codeOf(lengths) {
  const longest = Math.max(1, ...lengths), table = new Uint16Array(1 << longest);
  let next = 0, left = 1 << longest;
  for (let n = 1; n <= longest; ++n, next <<= 1)
    for (let symbol = 0; symbol < lengths.length; ++symbol) {
      if (lengths[symbol] !== n) continue;
      let turned = 0;
      for (let bit = 0; bit < n; ++bit) turned |= ((next >> bit) & 1) << (n - 1 - bit);
      for (let at = turned; at < table.length; at += 1 << n) table[at] = (symbol << 4) | n;
      ++next, left -= 1 << (longest - n);
      if (left < 0) throw new Error("Error -3 while decompressing data: invalid code lengths set");
    }
  return { table, longest };
}

function fixedCodes() {
  return [codeOf(Array.from({ length: 288 }, (_, i) => (i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8))), codeOf(Array(30).fill(5))];
}

function givenCodes(from) {
  const literals = from.take(5) + 257, distances = from.take(5) + 1, given = from.take(4) + 4, short = Array(19).fill(0);
  for (let i = 0; i < given; ++i) short[ORDER[i]] = from.take(3);
  const code = codeOf(short), lengths = [];
  while (lengths.length < literals + distances) {
    const symbol = from.symbol(code);
    if (symbol < 16) lengths.push(symbol);
    else {
      const value = symbol === 16 ? lengths[lengths.length - 1] : 0;
      const times = symbol === 16 ? 3 + from.take(2) : symbol === 17 ? 3 + from.take(3) : 11 + from.take(7);
      if (value === undefined || lengths.length + times > literals + distances) throw new Error("Error -3 while decompressing data: invalid bit length repeat");
      for (let i = 0; i < times; ++i) lengths.push(value);
    }
  }
  return [codeOf(lengths.slice(0, literals)), codeOf(lengths.slice(literals))];
}

// One stream of deflate.
function inflate(from, to) {
  const start = to.length;
  for (let last = 0; !last;) {
    last = from.take(1);
    const kind = from.take(2);
    if (kind === 3) throw new Error("Error -3 while decompressing data: invalid block type");
    if (kind === 0) copyStored(from, to);
    else inflateBlock(from, to, start, ...(kind === 1 ? fixedCodes() : givenCodes(from)));
  }
}

function copyStored(from, to) {
  from.toByte();
  const n = from.byte() + 256 * from.byte(), check = from.byte() + 256 * from.byte();
  if (n !== (check ^ 0xffff)) throw new Error("Error -3 while decompressing data: invalid stored block lengths");
  from.skip(n);
  to.reserve(n);
  to.bytes.set(from.bytes.subarray(from.at - n, from.at), to.length);
  to.length += n;
}

function inflateBlock(from, to, start, literal, distance) {
  for (;;) {
    const symbol = from.symbol(literal);
    if (symbol === 256) return;
    to.reserve(258);
    if (symbol < 256) {
      to.bytes[to.length++] = symbol;
      continue;
    }
    if (symbol > 285) throw new Error("Error -3 while decompressing data: invalid literal/length code");
    const n = LENGTHS[symbol - 257] + from.take(LENGTH_BITS[symbol - 257]), far = from.symbol(distance);
    if (far > 29) throw new Error("Error -3 while decompressing data: invalid distance code");
    const back = DISTANCES[far] + from.take(far < 4 ? 0 : (far >> 1) - 1), { bytes } = to;
    if (back > to.length - start) throw new Error("Error -3 while decompressing data: invalid distance too far back");
    for (let i = 0; i < n; ++i, ++to.length) bytes[to.length] = bytes[to.length - back];
  }
}
