// Sixteen fp32 lanes in plain C++, and the contract of all vector types here:
//  1. every type has exactly 16 lanes, so reductions have one shape in all families;
//  2. SumLanes adds lane i to i+8, then i+4, i+2, i+1;
//  3. Fma is one rounding where the processor has it (AVX2, AVX-512) and two here;
//  4. DotPairs adds products of bf16 pairs: lane i gains a[2i]*b[2i] + a[2i+1]*b[2i+1], in the
//     family's own order and rounding;
//  5. StoreBf16First rounds to nearest even.
//
// These headers are compiled with different -m flags in different files, so nothing in them may have
// external linkage: an inline function emitted with AVX-512 could otherwise be picked by the linker
// for a machine without it. For the same reason they use no function templates of the standard library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice::cpu {
namespace {

struct Portable {
  struct F {
    float lane[16];
  };

  static F Zero() { return Set(0); }
  static F Set(float x) {
    F out;
    for (float& lane : out.lane) lane = x;
    return out;
  }
  static F Load(const float* p) {
    F out;
    for (int i = 0; i < 16; ++i) out.lane[i] = p[i];
    return out;
  }
  static void Store(float* p, F x) {
    for (int i = 0; i < 16; ++i) p[i] = x.lane[i];
  }
  static F LoadFirst(const float* p, int n) {
    F out = Zero();
    for (int i = 0; i < n && i < 16; ++i) out.lane[i] = p[i];
    return out;
  }
  static void StoreFirst(float* p, F x, int n) {
    for (int i = 0; i < n && i < 16; ++i) p[i] = x.lane[i];
  }
  static F KeepFirst(F x, int n) {
    for (int i = 0; i < 16; ++i) x.lane[i] = i < n ? x.lane[i] : 0;
    return x;
  }

  static F Add(F a, F b) {
    for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static F Sub(F a, F b) {
    for (int i = 0; i < 16; ++i) a.lane[i] -= b.lane[i];
    return a;
  }
  static F Mul(F a, F b) {
    for (int i = 0; i < 16; ++i) a.lane[i] *= b.lane[i];
    return a;
  }
  static F Div(F a, F b) {
    for (int i = 0; i < 16; ++i) a.lane[i] /= b.lane[i];
    return a;
  }
  static F Max(F a, F b) {
    for (int i = 0; i < 16; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  static F Min(F a, F b) {
    for (int i = 0; i < 16; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  static F Fma(F a, F b, F c) { return Add(Mul(a, b), c); }
  // Nearest even for |x| < 2^22.
  static F Round(F x) {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
    for (int i = 0; i < 16; ++i) {
      const float shifted = x.lane[i] + kMagic;
      x.lane[i] = shifted - kMagic;
    }
    return x;
  }
  // 2^n for integral n in [-126, 127].
  static F Pow2(F n) {
    F out;
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.lane[i]) + 127) << 23;
      __builtin_memcpy(&out.lane[i], &bits, sizeof(bits));
    }
    return out;
  }
  static F ZeroIfBelow(F value, F x, F limit) {
    for (int i = 0; i < 16; ++i) value.lane[i] = x.lane[i] >= limit.lane[i] ? value.lane[i] : 0;
    return value;
  }
  static float SumLanes(F x) {
    for (int width = 8; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) x.lane[i] += x.lane[i + width];
    }
    return x.lane[0];
  }
  static float MaxLanes(F x) {
    float out = x.lane[0];
    for (float lane : x.lane) out = lane > out ? lane : out;
    return out;
  }

  static F LoadBf16(const uint16_t* p) {
    F out;
    for (int i = 0; i < 16; ++i) out.lane[i] = Widen(p[i]);
    return out;
  }
  static void StoreBf16First(uint16_t* p, F x, int n) {
    for (int i = 0; i < n && i < 16; ++i) {
      uint32_t bits;
      __builtin_memcpy(&bits, &x.lane[i], sizeof(bits));
      const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
      p[i] = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u
                                       : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
  }

  struct Pairs {
    F even, odd;
  };
  static Pairs LoadPairs(const uint16_t* p) {
    Pairs out;
    for (int i = 0; i < 16; ++i) {
      out.even.lane[i] = Widen(p[2 * i]);
      out.odd.lane[i] = Widen(p[2 * i + 1]);
    }
    return out;
  }
  static Pairs BroadcastPair(const uint16_t* p) { return {Set(Widen(p[0])), Set(Widen(p[1]))}; }
  static F DotPairs(F acc, Pairs a, Pairs b) {
    return Fma(a.odd, b.odd, Fma(a.even, b.even, acc));
  }

  static constexpr int kRows = 2;
  static constexpr int kPanels = 1;
  static constexpr int kPanelsOneRow = 1;

 private:
  static float Widen(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float out;
    __builtin_memcpy(&out, &bits, sizeof(out));
    return out;
  }
};

}  // namespace
}  // namespace sluice::cpu
