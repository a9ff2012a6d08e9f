// bf16 attention over one partition with AMX tiles, reading the cache's rows as they lie in memory.
// Scores come as K Q^T, so that only the few queries are rearranged. For the values, a tile product
// wants pairs of tokens side by side where memory has pairs of columns; instead of rearranging
// all values, each probability p enters twice, as the pairs (p, 0) and (0, p), which select the
// even and the odd columns. That doubles the tile products and is still far cheaper: they are few,
// and rearranging would pass every byte of the cache through the core twice more.
#pragma once

#include <cstdint>
#include <cstring>

#include "engine/device/cpu/amx_row_prefetch_inl.h"
#include "engine/device/cpu/amx_tile.h"
#include "engine/device/cpu/amx_transpose_inl.h"
#include "engine/device/cpu/attention_inl.h"
#include "engine/device/cpu/kernels.h"
#include "engine/device/cpu/vec_avx512.h"

namespace sluice::cpu {
namespace {

constexpr int kChunkTokens = 64;  // four tiles of scores
static_assert(kPartitionTokens % kChunkTokens == 0);

constexpr int kTokenTiles = kPartitionTokens / static_cast<int>(kTileRows);

// This thread's scratch, cut up.
struct AmxAttentionScratch {
  AmxAttentionScratch(void* base, int64_t q_stride) {
    uint8_t* p = static_cast<uint8_t*>(base);
    scores = reinterpret_cast<float*>(p);
    even = p += kScoreBytes;
    odd = p += kScoreBytes;
    q_tiles = p += kScoreBytes;
    last_rows = p + 2 * kMaxAttentionRows * q_stride;
  }
  static int64_t Bytes(int64_t q_stride) {
    return 3 * kScoreBytes + 2 * kMaxAttentionRows * q_stride + 2 * kTileRows * q_stride;
  }
  static constexpr int64_t kScoreBytes = int64_t{4} * kMaxAttentionRows * kPartitionTokens;

  float* scores;       // [kMaxAttentionRows, kPartitionTokens]
  uint8_t* even;       // [row tile][token tile] tiles of [row][token] pairs (p, 0) of bf16
  uint8_t* odd;        // the same of (0, p)
  uint8_t* q_tiles;    // [row tile][step of 32 elements] tiles of [element pair][row]
  uint8_t* last_rows;  // [16, q_stride] the last token tile, if it is not full
};

inline int64_t AmxAttentionScratchBytes(int64_t q_stride, int64_t /*latent_dim*/) {
  return AmxAttentionScratch::Bytes(q_stride);
}

struct FourTiles {
  alignas(64) float value[4][256];
};

// The sums of a kernel are tiles 0 to 3.
inline void ZeroFourTiles() {
  SLUICE_TILE_ZERO(0);
  SLUICE_TILE_ZERO(1);
  SLUICE_TILE_ZERO(2);
  SLUICE_TILE_ZERO(3);
}
inline void StoreFourTiles(FourTiles& out) {
  SLUICE_TILE_STORE(0, out.value[0], kTileRowBytes);
  SLUICE_TILE_STORE(1, out.value[1], kTileRowBytes);
  SLUICE_TILE_STORE(2, out.value[2], kTileRowBytes);
  SLUICE_TILE_STORE(3, out.value[3], kTileRowBytes);
}

// Takes tiles of [token][row] four at a time and delivers them while the next four are computed.
class ScoreSink {
 public:
  ScoreSink(const AttentionArgs& args, float* scores) : args_(args), scores_(scores) {}

  // Where the next four tiles of sums go.
  FourTiles& Next() { return tiles_[next_]; }
  // They are there: the i-th is of rows[i] and tokens[i] on. Delivers what is left of those before.
  void Take(const int (&rows)[4], const int (&tokens)[4]) {
    Flush();
    std::memcpy(rows_, rows, sizeof(rows_));
    std::memcpy(tokens_, tokens, sizeof(tokens_));
    left_ = 4;
    next_ ^= 1;
  }
  // Delivers one tile of those taken last, if there is one left.
  void Step() {
    if (left_ == 0) return;
    const int i = --left_;
    DeliverScores(args_, rows_[i], tokens_[i], tiles_[next_ ^ 1].value[i], scores_);
  }
  void Flush() {
    while (left_ > 0) Step();
  }

 private:
  const AttentionArgs& args_;
  float* const scores_;
  FourTiles tiles_[2];
  int next_ = 0;
  int left_ = 0;
  int rows_[4];
  int tokens_[4];
};

// 16 tokens by 16 rows; `beside()` runs in the shadow of the tile products.
template <class Beside>
inline void ScoreTile1x1(const uint8_t* key, int64_t row_bytes, const uint8_t* q, int64_t steps,
                         float* out, const Beside& beside) {
  SLUICE_TILE_ZERO(0);
  for (int64_t step = 0; step < steps; ++step) {
    SLUICE_TILE_LOAD(6, q + step * kTileBytes, kTileRowBytes);
    SLUICE_TILE_LOAD(4, key + step * kTileRowBytes, row_bytes);
    SLUICE_TILE_DOT(0, 4, 6);
    KeepVectorUnitAwake();
    beside();
  }
  SLUICE_TILE_STORE(0, out, kTileRowBytes);
}

// 32 tokens by 32 rows: [token tile][row tile].
template <class Beside>
inline void ScoreTiles2x2(const uint8_t* key0, const uint8_t* key1, int64_t row_bytes,
                          const uint8_t* q, int64_t steps, FourTiles& out, const Beside& beside) {
  ZeroFourTiles();
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t offset = step * kTileRowBytes;
    SLUICE_TILE_LOAD(6, q + step * kTileBytes, kTileRowBytes);
    SLUICE_TILE_LOAD(4, key0 + offset, row_bytes);
    SLUICE_TILE_DOT(0, 4, 6);
    SLUICE_TILE_LOAD(5, key1 + offset, row_bytes);
    SLUICE_TILE_DOT(2, 5, 6);
    SLUICE_TILE_LOAD(7, q + (steps + step) * kTileBytes, kTileRowBytes);
    SLUICE_TILE_DOT(1, 4, 7);
    SLUICE_TILE_DOT(3, 5, 7);
    KeepVectorUnitAwake();
    beside();
  }
  StoreFourTiles(out);
}

inline void AmxScores(const AttentionArgs& args, const AmxAttentionScratch& scratch) {
  const int64_t steps = args.q_stride / kTileDepth;
  const int64_t row_bytes = args.row_stride * 2;
  ScoreSink sink(args, scratch.scores);
  // A pair of row tiles takes a step for 32 tokens, a single one for 16.
  const int pairs = (args.rows + 15) / 32;
  const int64_t steps_per_tile = pairs * steps / 2 + (args.rows > 32 * pairs ? steps : 0);
  const int ahead = TokensFetchedAhead(args.rows);
  RowPrefetch prefetch(args, args.row_base, ahead, args.num_tokens,
                       (args.num_tokens - ahead + 15) / 16 * steps_per_tile);
  const auto beside = [&] {
    sink.Step();
    prefetch.Step();
  };
  for (int token = 0; token < args.num_tokens; token += kChunkTokens) {
    // The last chunk may hold bytes of nobody, whose scores are masked.
    const uint8_t* key[4];
    for (int i = 0; i < 4; ++i) {
      const int t = token + 16 * i < args.num_tokens ? token + 16 * i : token;
      key[i] = reinterpret_cast<const uint8_t*>(CacheRow<uint16_t>(args, t));
    }
    int row = 0;
    for (; row + 16 < args.rows; row += 32) {
      const uint8_t* q = scratch.q_tiles + row / 16 * steps * kTileBytes;
      for (int i = 0; i < 4; i += 2) {
        FourTiles& out = sink.Next();
        ScoreTiles2x2(key[i], key[i + 1], row_bytes, q, steps, out, beside);
        const int t = token + i * 16;
        sink.Take({row, row + 16, row, row + 16}, {t, t, t + 16, t + 16});
      }
    }
    if (row >= args.rows) continue;
    FourTiles& out = sink.Next();
    for (int i = 0; i < 4; ++i) {
      ScoreTile1x1(key[i], row_bytes, scratch.q_tiles + row / 16 * steps * kTileBytes, steps,
                   out.value[i], beside);
    }
    sink.Take({row, row, row, row}, {token, token + 16, token + 32, token + 48});
  }
  sink.Flush();
}

// Scores become probabilities, as tiles of pairs.
inline void AmxSoftmax(const AttentionArgs& args, int token_tiles,
                       const AmxAttentionScratch& scratch) {
  for (int r = 0; r < args.rows; ++r) {
    float* const scores = scratch.scores + r * kPartitionTokens;
    MaskedSoftmaxRow<Avx512>(args, r, scores);
    const int64_t row = r / 16 * kTokenTiles * kTileBytes + r % 16 * kTileRowBytes;
    for (int t = 0; t < token_tiles; ++t) {
      const __m512 p = Avx512::Load(scores + t * 16);
      const __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(p));
      _mm512_store_si512(scratch.even + row + t * kTileBytes, bits);
      _mm512_store_si512(scratch.odd + row + t * kTileBytes, _mm512_slli_epi32(bits, 16));
    }
  }
}

// Token tiles as the value products read them. Tokens beyond the last have probability zero, but
// zero times a foreign NaN would be NaN: a last tile that is not full is a copy filled with zeros.
struct ValueSource {
  ValueSource(const AttentionArgs& args, const AmxAttentionScratch& scratch)
      : token_tiles((args.num_tokens + 15) / 16), stride_bytes(args.row_stride * 2) {
    for (int t = 0; t < token_tiles; ++t) {
      tile[t] = reinterpret_cast<const uint8_t*>(CacheRow<uint16_t>(args, t * 16));
    }
    const int64_t left = args.num_tokens % 16;
    if (left == 0) return;
    std::memcpy(scratch.last_rows, tile[token_tiles - 1], static_cast<size_t>(left * stride_bytes));
    std::memset(scratch.last_rows + left * stride_bytes, 0,
                static_cast<size_t>((16 - left) * stride_bytes));
    tile[token_tiles - 1] = scratch.last_rows;
  }

  int token_tiles;
  int64_t stride_bytes;
  const uint8_t* tile[kTokenTiles];
};

// Sums of even and of odd columns become rows of 32 columns.
inline void DeliverValues(const AttentionArgs& args, int row, int64_t column, const float* even,
                          const float* odd) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const int rows = args.rows - row < 16 ? args.rows - row : 16;
  for (int r = 0; r < rows; ++r) {
    const __m512 a = Avx512::Load(even + r * 16), b = Avx512::Load(odd + r * 16);
    float* out = args.out + (row + r) * args.out_stride + column;
    Avx512::Store(out, _mm512_permutex2var_ps(a, low, b));
    Avx512::Store(out + 16, _mm512_permutex2var_ps(a, high, b));
  }
}

// 16 rows by 64 columns.
inline void ValueTiles64(const uint8_t* even, const uint8_t* odd, const ValueSource& values,
                         int64_t column, RowPrefetch& prefetch, FourTiles& out) {
  ZeroFourTiles();
  for (int t = 0; t < values.token_tiles; ++t) {
    const uint8_t* v = values.tile[t] + column * 2;
    SLUICE_TILE_LOAD(4, even + t * kTileBytes, kTileRowBytes);
    SLUICE_TILE_LOAD(6, v, values.stride_bytes);
    SLUICE_TILE_DOT(0, 4, 6);
    SLUICE_TILE_LOAD(5, odd + t * kTileBytes, kTileRowBytes);
    SLUICE_TILE_DOT(1, 5, 6);
    SLUICE_TILE_LOAD(7, v + kTileRowBytes, values.stride_bytes);
    SLUICE_TILE_DOT(2, 4, 7);
    SLUICE_TILE_DOT(3, 5, 7);
    KeepVectorUnitAwake();
    prefetch.Step();
  }
  StoreFourTiles(out);
}

// 16 rows by 32 columns.
inline void ValueTiles32(const uint8_t* even, const uint8_t* odd, const ValueSource& values,
                         int64_t column, RowPrefetch& prefetch, FourTiles& out) {
  SLUICE_TILE_ZERO(0);
  SLUICE_TILE_ZERO(1);
  for (int t = 0; t < values.token_tiles; ++t) {
    SLUICE_TILE_LOAD(4, even + t * kTileBytes, kTileRowBytes);
    SLUICE_TILE_LOAD(6, values.tile[t] + column * 2, values.stride_bytes);
    SLUICE_TILE_DOT(0, 4, 6);
    SLUICE_TILE_LOAD(5, odd + t * kTileBytes, kTileRowBytes);
    SLUICE_TILE_DOT(1, 5, 6);
    KeepVectorUnitAwake();
    prefetch.Step();
  }
  SLUICE_TILE_STORE(0, out.value[0], kTileRowBytes);
  SLUICE_TILE_STORE(1, out.value[1], kTileRowBytes);
}

// Column by column, so that all rows find their values in the first-level cache. `out` has
// latent_dim rounded up to 32 columns.
inline void AmxValues(const AttentionArgs& args, const ValueSource& values,
                      const AmxAttentionScratch& scratch) {
  FourTiles out;
  const int64_t row_tiles = (args.rows + 15) / 16;
  const int ahead = TokensFetchedAhead(args.rows);
  const int fetched = args.next_tokens < ahead ? args.next_tokens : ahead;
  RowPrefetch prefetch(args, args.next_row_base, 0, fetched,
                       row_tiles * ((args.latent_dim + 63) / 64) * values.token_tiles);
  for (int64_t column = 0; column < args.latent_dim; column += 64) {
    for (int row = 0; row < args.rows; row += 16) {
      const uint8_t* even = scratch.even + row / 16 * kTokenTiles * kTileBytes;
      const uint8_t* odd = scratch.odd + row / 16 * kTokenTiles * kTileBytes;
      if (args.latent_dim - column <= 32) {
        ValueTiles32(even, odd, values, column, prefetch, out);
        DeliverValues(args, row, column, out.value[0], out.value[1]);
        continue;
      }
      ValueTiles64(even, odd, values, column, prefetch, out);
      DeliverValues(args, row, column, out.value[0], out.value[1]);
      DeliverValues(args, row, column + 32, out.value[2], out.value[3]);
    }
  }
}

void AmxAttention(const AttentionArgs& args) {
  const AmxAttentionScratch scratch(args.scratch, args.q_stride);
  TileScope tiles;
  if (!args.same_queries) PackQueries(args, scratch.q_tiles);
  const ValueSource values(args, scratch);
  AmxScores(args, scratch);
  AmxSoftmax(args, values.token_tiles, scratch);
  if (args.rows < 16) tiles.SetLeftRows(args.rows);
  AmxValues(args, values, scratch);
}

}  // namespace
}  // namespace sluice::cpu
