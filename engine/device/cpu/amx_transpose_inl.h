// Transposes for the AMX attention: queries become tiles of [element pair][row], and tiles of
// scores [token][row] become rows of scores.
#pragma once

#include <cstdint>

#include "engine/device/cpu/amx_tile.h"
#include "engine/device/cpu/kernels.h"
#include "engine/device/cpu/vec_avx512.h"

namespace sluice::cpu {
namespace {

// Transposes 16 x 16 values of 32 bits.
inline void Transpose16(const __m512i in[16], __m512i out[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // b[4g + c] holds, in 128-bit lane l, column 4l + c of rows 4g .. 4g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xee);
    out[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    out[4 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    out[8 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    out[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
}

// -> [row tile][step of 32 elements] tiles of [element pair][row]. Rows beyond the last are the
// buffer's overhang or other queries: computed and dropped.
inline void PackQueries(const AttentionArgs& args, uint8_t* q_tiles) {
  const int64_t steps = args.q_stride / kTileDepth;
  for (int row = 0; row < args.rows; row += 16) {
    for (int64_t step = 0; step < steps; ++step) {
      __m512i in[16], out[16];
      for (int r = 0; r < 16; ++r) {
        in[r] = _mm512_loadu_si512(static_cast<const uint16_t*>(args.q) +
                                   (row + r) * args.q_stride + step * kTileDepth);
      }
      Transpose16(in, out);
      uint8_t* tile = q_tiles + (row / 16 * steps + step) * kTileBytes;
      for (int r = 0; r < 16; ++r) _mm512_store_si512(tile + r * kTileRowBytes, out[r]);
    }
  }
}

// A tile of [token][row] becomes scaled scores of [row][token].
inline void DeliverScores(const AttentionArgs& args, int row, int token, const float* tile,
                          float* scores) {
  __m512i in[16], out[16];
  const __m512 scale = _mm512_set1_ps(args.scale);
  for (int t = 0; t < 16; ++t) {
    in[t] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(tile + t * 16), scale));
  }
  Transpose16(in, out);
  const int rows = args.rows - row < 16 ? args.rows - row : 16;
  for (int r = 0; r < rows; ++r) {
    _mm512_storeu_ps(scores + (row + r) * kPartitionTokens + token, _mm512_castsi512_ps(out[r]));
  }
}

}  // namespace
}  // namespace sluice::cpu
