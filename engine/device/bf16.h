// bfloat16 as stored bits, and its scalar conversions. Kernels have vector forms of the same; a
// bf16 value is exact in fp32. Any thread.
#pragma once

#include <cstdint>
#include <cstring>

namespace sluice {

using Bf16 = uint16_t;

inline float Bf16ToFloat(Bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
inline Bf16 FloatToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<Bf16>((bits >> 16) | 0x40u);
  return static_cast<Bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace sluice
