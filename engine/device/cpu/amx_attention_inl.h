// bf16 attention over one partition with AMX tiles. Scores come as K Q^T, so that the cache's rows
// are tiles as they lie in memory and only the few queries are rearranged; values are interleaved
// by pairs of tokens once per call and used by all rows.
#pragma once

#include <cstdint>

#include "engine/device/cpu/amx_tile.h"
#include "engine/device/cpu/attention_inl.h"
#include "engine/device/cpu/kernels.h"
#include "engine/device/cpu/vec_avx512.h"

namespace sluice::cpu {
namespace {

constexpr int kTokenTiles = kPartitionTokens / static_cast<int>(kTileDepth);  // of 32 tokens

// This thread's scratch, cut up.
struct AmxAttentionScratch {
  AmxAttentionScratch(void* base, int64_t q_stride) {
    uint8_t* p = static_cast<uint8_t*>(base);
    scores = reinterpret_cast<float*>(p);
    p += ScoreBytes();
    probabilities = reinterpret_cast<uint16_t*>(p);
    p += ProbabilityBytes();
    q_tiles = p;
    value_tiles = p + QueryBytes(q_stride);
  }
  static int64_t ScoreBytes() { return int64_t{4} * kMaxAttentionRows * kPartitionTokens; }
  static int64_t ProbabilityBytes() { return int64_t{2} * kMaxAttentionRows * kPartitionTokens; }
  static int64_t QueryBytes(int64_t q_stride) { return 2 * kMaxAttentionRows * q_stride; }
  static int64_t ValueBytes(int64_t latent_dim) {
    return 2 * kPartitionTokens * ((latent_dim + 31) / 32 * 32);
  }

  float* scores;            // [kMaxAttentionRows, kPartitionTokens]
  uint16_t* probabilities;  // [kMaxAttentionRows, kPartitionTokens] bf16
  uint8_t* q_tiles;         // [row tile][step of 32 elements] tiles of [element pair][row]
  uint8_t* value_tiles;     // [32 tokens][16 columns] tiles of [token pair][column]
};

inline int64_t AmxAttentionScratchBytes(int64_t q_stride, int64_t latent_dim) {
  return AmxAttentionScratch::ScoreBytes() + AmxAttentionScratch::ProbabilityBytes() +
         AmxAttentionScratch::QueryBytes(q_stride) + AmxAttentionScratch::ValueBytes(latent_dim);
}

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

inline void PackQueries(const AttentionArgs& args, uint8_t* q_tiles) {
  const int64_t steps = args.q_stride / kTileDepth;
  for (int row = 0; row < args.rows; row += 16) {
    for (int64_t step = 0; step < steps; ++step) {
      __m512i in[16], out[16];
      for (int r = 0; r < 16; ++r) {
        // Rows beyond the last are the buffer's overhang or other queries: computed and dropped.
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

inline void AmxScores(const AttentionArgs& args, const uint8_t* q_tiles, float* scores) {
  const int64_t steps = args.q_stride / kTileDepth;
  const int64_t row_bytes = args.row_stride * 2;
  alignas(64) float tile[4][256];
  // 64 tokens (four tiles) at a time; the last may hold bytes of nobody, whose scores are masked.
  for (int token = 0; token < args.num_tokens; token += 64) {
    const uint8_t* key[4];
    for (int i = 0; i < 4; ++i) {
      const int t = token + 16 * i < args.num_tokens ? token + 16 * i : token;
      key[i] = reinterpret_cast<const uint8_t*>(CacheRow<uint16_t>(args, t));
    }
    for (int row = 0; row < args.rows; row += 16) {
      const uint8_t* q = q_tiles + row / 16 * steps * kTileBytes;
      SLUICE_TILE_ZERO(0);
      SLUICE_TILE_ZERO(1);
      SLUICE_TILE_ZERO(2);
      SLUICE_TILE_ZERO(3);
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t offset = step * kTileRowBytes;
        SLUICE_TILE_LOAD(4, q + step * kTileBytes, kTileRowBytes);
        SLUICE_TILE_LOAD(5, key[0] + offset, row_bytes);
        SLUICE_TILE_DOT(0, 5, 4);
        SLUICE_TILE_LOAD(6, key[1] + offset, row_bytes);
        SLUICE_TILE_DOT(1, 6, 4);
        SLUICE_TILE_LOAD(7, key[2] + offset, row_bytes);
        SLUICE_TILE_DOT(2, 7, 4);
        SLUICE_TILE_LOAD(5, key[3] + offset, row_bytes);
        SLUICE_TILE_DOT(3, 5, 4);
      }
      SLUICE_TILE_STORE(0, tile[0], kTileRowBytes);
      SLUICE_TILE_STORE(1, tile[1], kTileRowBytes);
      SLUICE_TILE_STORE(2, tile[2], kTileRowBytes);
      SLUICE_TILE_STORE(3, tile[3], kTileRowBytes);
      for (int i = 0; i < 4; ++i) DeliverScores(args, row, token + 16 * i, tile[i], scores);
    }
  }
}

inline void PackValues(const AttentionArgs& args, uint8_t* value_tiles) {
  const int64_t column_tiles = (args.latent_dim + 31) / 32 * 2;
  const int padded_tokens = (args.num_tokens + 31) / 32 * 32;
  // Words of two rows, taken in turns.
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int token = 0; token < padded_tokens; token += 2) {
    // Tokens beyond the last have probability zero, and zero times a foreign NaN would be NaN.
    const bool first = token < args.num_tokens, second = token + 1 < args.num_tokens;
    const uint16_t* row = CacheRow<uint16_t>(args, first ? token : 0);
    uint8_t* tile =
        value_tiles + token / 32 * column_tiles * kTileBytes + token % 32 / 2 * kTileRowBytes;
    for (int64_t column = 0; column < column_tiles; column += 2, tile += 2 * kTileBytes) {
      const __m512i a = first ? _mm512_loadu_si512(row + column * 16) : _mm512_setzero_si512();
      const __m512i b =
          second ? _mm512_loadu_si512(row + args.row_stride + column * 16) : _mm512_setzero_si512();
      _mm512_store_si512(tile, _mm512_permutex2var_epi16(a, low, b));
      _mm512_store_si512(tile + kTileBytes, _mm512_permutex2var_epi16(a, high, b));
    }
  }
}

inline void AmxValues(const AttentionArgs& args, const uint16_t* probabilities,
                      const uint8_t* value_tiles) {
  const int64_t column_tiles = (args.latent_dim + 31) / 32 * 2;
  const int token_tiles = (args.num_tokens + 31) / 32;
  constexpr int64_t kProbabilityStride = kPartitionTokens * 2;
  const int64_t out_stride = args.out_stride * 4;
  for (int row = 0; row < args.rows; row += 16) {
    const uint16_t* p = probabilities + row * kPartitionTokens;
    float* out = args.out + row * args.out_stride;  // all 64 rows exist
    int64_t column = 0;
    for (; column + 4 <= column_tiles; column += 4) {
      SLUICE_TILE_ZERO(0);
      SLUICE_TILE_ZERO(1);
      SLUICE_TILE_ZERO(2);
      SLUICE_TILE_ZERO(3);
      for (int t = 0; t < token_tiles; ++t) {
        const uint8_t* v = value_tiles + (t * column_tiles + column) * kTileBytes;
        SLUICE_TILE_LOAD(4, p + t * kTileDepth, kProbabilityStride);
        SLUICE_TILE_LOAD(5, v, kTileRowBytes);
        SLUICE_TILE_DOT(0, 4, 5);
        SLUICE_TILE_LOAD(6, v + kTileBytes, kTileRowBytes);
        SLUICE_TILE_DOT(1, 4, 6);
        SLUICE_TILE_LOAD(7, v + 2 * kTileBytes, kTileRowBytes);
        SLUICE_TILE_DOT(2, 4, 7);
        SLUICE_TILE_LOAD(5, v + 3 * kTileBytes, kTileRowBytes);
        SLUICE_TILE_DOT(3, 4, 5);
      }
      SLUICE_TILE_STORE(0, out + column * 16, out_stride);
      SLUICE_TILE_STORE(1, out + column * 16 + 16, out_stride);
      SLUICE_TILE_STORE(2, out + column * 16 + 32, out_stride);
      SLUICE_TILE_STORE(3, out + column * 16 + 48, out_stride);
    }
    for (; column < column_tiles; ++column) {
      SLUICE_TILE_ZERO(0);
      for (int t = 0; t < token_tiles; ++t) {
        SLUICE_TILE_LOAD(4, p + t * kTileDepth, kProbabilityStride);
        SLUICE_TILE_LOAD(5, value_tiles + (t * column_tiles + column) * kTileBytes, kTileRowBytes);
        SLUICE_TILE_DOT(0, 4, 5);
      }
      SLUICE_TILE_STORE(0, out + column * 16, out_stride);
    }
  }
}

void AmxAttention(const AttentionArgs& args) {
  const AmxAttentionScratch scratch(args.scratch, args.q_stride);
  const TileScope tiles;
  PackQueries(args, scratch.q_tiles);
  AmxScores(args, scratch.q_tiles, scratch.scores);
  MaskedSoftmax<Avx512>(args, scratch.scores);
  const int padded_tokens = (args.num_tokens + 31) / 32 * 32;
  for (int r = 0; r < args.rows; ++r) {
    ScaleBf16<Avx512>(scratch.scores + r * kPartitionTokens, 1.0f,
                      scratch.probabilities + r * kPartitionTokens, padded_tokens);
  }
  PackValues(args, scratch.value_tiles);
  AmxValues(args, scratch.probabilities, scratch.value_tiles);
}

}  // namespace
}  // namespace sluice::cpu
