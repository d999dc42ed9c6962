// Numbers of 64 binary digits, the long double of x86, in which nibabel turns a header's quaternion into a matrix: every
// result is rounded to the nearest, of two to the even one. A number is {m, e}: m * 2 ** e, m a BigInt.
"use strict";

const DIGITS = 64;

function extended(value) {
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, value);
  const whole = bits.getBigUint64(0), power = Number((whole >> 52n) & 2047n), part = whole & ((1n << 52n) - 1n);
  const m = power ? part | (1n << 52n) : part;
  return { m: whole >> 63n ? -m : m, e: Math.max(power, 1) - 1075 };
}

function toNumber({ m, e }) {
  return Number(m) * 2 ** e;  // of a BigInt the nearest number; no subnormal ones occur
}

function digits(m) {
  return (m < 0n ? -m : m).toString(2).length;
}

function nearest(m, e) {
  const over = digits(m) - DIGITS;
  if (over <= 0) return { m, e };
  const size = m < 0n ? -m : m, half = 1n << BigInt(over - 1), rest = size & (2n * half - 1n);
  const up = rest > half || (rest === half && (size >> BigInt(over)) & 1n) ? 1n : 0n, rounded = (size >> BigInt(over)) + up;
  return { m: m < 0n ? -rounded : rounded, e: e + over };
}

function times(a, b) {
  return nearest(a.m * b.m, a.e + b.e);
}

function plus(a, b, sign = 1n) {
  const e = Math.min(a.e, b.e);
  return nearest((a.m << BigInt(a.e - e)) + sign * (b.m << BigInt(b.e - e)), e);
}

function minus(a, b) {
  return plus(a, b, -1n);
}

// a / b for positive ones. A last digit stands for what is left over, so that nothing is taken for a tie.
function over(a, b) {
  const more = BigInt(2 * DIGITS + digits(b.m)), m = a.m << more, whole = m / b.m;
  return nearest(2n * whole + (m % b.m ? 1n : 0n), a.e - b.e - Number(more) - 1);
}

function root(a) {
  const more = BigInt(4 * DIGITS + (a.e & 1)), m = a.m << more;
  if (m === 0n) return a;
  let x = 1n << BigInt((digits(m) >> 1) + 1);
  for (let next; (next = (x + m / x) >> 1n) < x;) x = next;
  return nearest(2n * x + (x * x === m ? 0n : 1n), (a.e - Number(more)) / 2 - 1);
}

// nibabel's fillpositive: the first number of a quaternion from the other three; null where these are too long. `near`: as
// far from 0 as its square may be for 0.
function firstOf(xyz, near) {
  const left = minus(extended(1), xyz.map((one) => times(one, one)).reduce((sum, one) => plus(sum, one)));
  const value = toNumber(left);
  if (Math.abs(value) < near) return { w: extended(0), left: value };
  return { w: value >= 0 ? root(left) : null, left: value };
}

// nibabel's quat2mat, and each column times the size of a voxel.
function matrixOf(w, [x, y, z], sizes) {
  const one = extended(1), all = [w, x, y, z].map((value) => times(value, value)).reduce((sum, value) => plus(sum, value));
  const s = over(extended(2), all), [X, Y, Z] = [x, y, z].map((value) => times(value, s));
  const [wX, wY, wZ] = [X, Y, Z].map((value) => times(w, value)), [xX, xY, xZ] = [X, Y, Z].map((value) => times(x, value));
  const [yY, yZ, zZ] = [times(y, Y), times(y, Z), times(z, Z)];
  const turn = [
    [minus(one, plus(yY, zZ)), minus(xY, wZ), plus(xZ, wY)],
    [plus(xY, wZ), minus(one, plus(xX, zZ)), minus(yZ, wX)],
    [minus(xZ, wY), plus(yZ, wX), minus(one, plus(xX, yY))],
  ];
  return turn.map((row) => row.map((value, c) => toNumber(times(value, extended(sizes[c])))));
}
