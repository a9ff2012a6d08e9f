// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as
// 1, 2, 3" (SC 2011). A pure function from (key, counter) to 128 random bits: no state to carry, so
// a token's randomness depends on its request's seed and its index alone. Any thread.
#pragma once

#include <array>
#include <cstdint>

namespace sluice {

inline std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                          std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// Uniform in [0, 1), 53 bits, for the token with this index in the answer.
inline double TokenUniform(uint64_t seed, uint64_t token_index) {
  const std::array<uint32_t, 4> bits = Philox4x32(
      {static_cast<uint32_t>(token_index), static_cast<uint32_t>(token_index >> 32), 0, 0},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t mantissa = (uint64_t{bits[1]} << 32 | bits[0]) >> 11;
  return static_cast<double>(mantissa) * 0x1.0p-53;
}

}  // namespace sluice
