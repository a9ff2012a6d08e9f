// Sixteen fp32 lanes in plain C++, and the contract of all vector types here:
//  1. every type has exactly 16 lanes, so reductions have one shape in all families;
//  2. SumLanes adds lane i to i+8, then i+4, i+2, i+1;
//  3. Fma is one rounding where the processor has it (AVX2, AVX-512) and two here;
//  4. LoadEven and LoadOdd widen the even and the odd elements of 16 bf16 pairs, LoadBf16 16
//     elements in a row; StoreInterleaved puts 32 floats back into the order of pairs;
//  5. StoreBf16First rounds to nearest even.
//
// These headers are compiled with different -m flags in different files, so nothing in them may
// have external linkage: an inline function emitted with AVX-512 could otherwise be picked by the
// linker for a machine without it. For the same reason they use no function templates of the
// standard library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice::cpu {
namespace {

// Vector extensions of GCC and Clang: any processor, SSE2 or NEON where it is the baseline.
typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint32_t Uint4 __attribute__((vector_size(16)));

struct Portable {
  struct F {
    Float4 v[4];  // lanes 0-3, 4-7, 8-11, 12-15
  };

  static F Zero() { return Set(0); }
  static F Set(float x) {
    F out;
    for (Float4& v : out.v) v = Float4{x, x, x, x};
    return out;
  }
  static F Load(const float* p) {
    F out;
    __builtin_memcpy(&out, p, sizeof(out));
    return out;
  }
  static void Store(float* p, F x) { __builtin_memcpy(p, &x, sizeof(x)); }
  static F LoadFirst(const float* p, int n) {
    if (n >= 16) return Load(p);
    F out = Zero();
    __builtin_memcpy(&out, p, static_cast<size_t>(n) * sizeof(float));
    return out;
  }
  static void StoreFirst(float* p, F x, int n) {
    if (n >= 16) return Store(p, x);
    __builtin_memcpy(p, &x, static_cast<size_t>(n) * sizeof(float));
  }
  static F KeepFirst(F x, int n) {
    if (n >= 16) return x;
    F out = Zero();
    __builtin_memcpy(&out, &x, static_cast<size_t>(n) * sizeof(float));
    return out;
  }

  static F Add(F a, F b) {
    for (int i = 0; i < 4; ++i) a.v[i] += b.v[i];
    return a;
  }
  static F Sub(F a, F b) {
    for (int i = 0; i < 4; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static F Mul(F a, F b) {
    for (int i = 0; i < 4; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static F Div(F a, F b) {
    for (int i = 0; i < 4; ++i) a.v[i] /= b.v[i];
    return a;
  }
  static F Max(F a, F b) {
    for (int i = 0; i < 4; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static F Min(F a, F b) {
    for (int i = 0; i < 4; ++i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static F Fma(F a, F b, F c) { return Add(Mul(a, b), c); }
  // Nearest even for |x| < 2^22.
  static F Round(F x) {
    const F magic = Set(12582912.0f);  // 1.5 * 2^23
    return Sub(Add(x, magic), magic);
  }
  // 2^n for integral n in [-126, 127].
  static F Pow2(F n) {
    F out;
    for (int i = 0; i < 4; ++i) {
      out.v[i] = (Float4)((__builtin_convertvector(n.v[i], Int4) + 127) << 23);
    }
    return out;
  }
  static F ZeroIfBelow(F value, F x, F limit) {
    for (int i = 0; i < 4; ++i) {
      value.v[i] = (Float4)((Int4)value.v[i] & (Int4)(x.v[i] >= limit.v[i]));
    }
    return value;
  }
  static float SumLanes(F x) {
    const Float4 sum = (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }
  static float MaxLanes(F x) {
    const F half = Max(x, {{x.v[2], x.v[3], x.v[2], x.v[3]}});
    float out = half.v[0][0];
    for (int i = 1; i < 8; ++i) {
      const float lane = half.v[i / 4][i % 4];
      out = lane > out ? lane : out;
    }
    return out;
  }

  static F LoadBf16(const uint16_t* p) {
    F out;
    for (int i = 0; i < 4; ++i) {
      const Uint4 wide = {p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
      out.v[i] = (Float4)(wide << 16);
    }
    return out;
  }
  static void StoreBf16First(uint16_t* p, F x, int n) {
    for (int i = 0; i < n && i < 16; ++i) {
      const float lane = x.v[i / 4][i % 4];
      uint32_t bits;
      __builtin_memcpy(&bits, &lane, sizeof(bits));
      const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
      p[i] = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u
                                       : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
  }

  // Little-endian: the even element of a pair is the low half of its word.
  static F LoadEven(const uint16_t* pairs) {
    F out;
    for (int i = 0; i < 4; ++i) out.v[i] = (Float4)(LoadWords(pairs + 8 * i) << 16);
    return out;
  }
  static F LoadOdd(const uint16_t* pairs) {
    F out;
    for (int i = 0; i < 4; ++i) out.v[i] = (Float4)(LoadWords(pairs + 8 * i) & 0xffff0000u);
    return out;
  }
  static void StoreInterleaved(float* p, F even, F odd) {
    for (int i = 0; i < 16; ++i) {
      p[2 * i] = even.v[i / 4][i % 4];
      p[2 * i + 1] = odd.v[i / 4][i % 4];
    }
  }

  static constexpr int kRows = 2;
  static constexpr int kPanels = 1;
  static constexpr int kPanelsOneRow = 1;

 private:
  static Uint4 LoadWords(const uint16_t* p) {
    Uint4 words;
    __builtin_memcpy(&words, p, sizeof(words));
    return words;
  }
};

}  // namespace
}  // namespace sluice::cpu
