// Attention over one partition of the latent cache (see AttentionArgs), for any vector type of
// vec_portable.h's contract. Three passes: scores, softmax, weighted sum of the latents.
#pragma once

#include <cstdint>

#include "engine/device/cpu/kernels.h"
#include "engine/device/cpu/rows_inl.h"

namespace sluice::cpu {
namespace {

// How 32 consecutive elements of a cache row or query are read as two vectors of fp32, and sums of
// such vectors written in the elements' order: halves, or of bf16 the even and the odd elements.
template <class V>
struct F32Cache {
  using Element = float;
  static typename V::F LoadOne(const float* p) { return V::Load(p); }
  static typename V::F LoadOther(const float* p) { return V::Load(p + 16); }
  static void Store(float* p, typename V::F one, typename V::F other) {
    V::Store(p, one);
    V::Store(p + 16, other);
  }
};

template <class V>
struct Bf16Cache {
  using Element = uint16_t;
  static typename V::F LoadOne(const uint16_t* p) { return V::LoadEven(p); }
  static typename V::F LoadOther(const uint16_t* p) { return V::LoadOdd(p); }
  static void Store(float* p, typename V::F one, typename V::F other) {
    V::StoreInterleaved(p, one, other);
  }
};

template <class Element>
inline const Element* CacheRow(const AttentionArgs& args, int token) {
  const int block = token / args.block_tokens;
  return static_cast<const Element*>(args.row_base[block]) +
         (token - block * args.block_tokens) * args.row_stride;
}

// The row kTokensAhead tokens after `token`, of this partition or the next; `token`'s own if there
// is none.
template <class Element>
inline const Element* CacheRowAhead(const AttentionArgs& args, int token) {
  constexpr int kTokensAhead = 8;
  const int ahead = token + kTokensAhead;
  if (ahead < args.num_tokens) return CacheRow<Element>(args, ahead);
  const int next = ahead - args.num_tokens;
  if (args.next_row_base == nullptr || next >= args.next_tokens) {
    return CacheRow<Element>(args, token);
  }
  const int block = next / args.block_tokens;
  return static_cast<const Element*>(args.next_row_base[block]) +
         (next - block * args.block_tokens) * args.row_stride;
}

// scores[r, t] for kRows queries from `row` on and kKeys tokens from `token` on.
template <class V, class Cache, int kRows, int kKeys>
inline void ScoreTile(const AttentionArgs& args, int row, int token, float* scores) {
  using Element = typename Cache::Element;
  const Element* q = static_cast<const Element*>(args.q) + row * args.q_stride;
  const Element* key[kKeys];
  for (int t = 0; t < kKeys; ++t) key[t] = CacheRow<Element>(args, token + t);
  const Element* ahead[kKeys];
  for (int t = 0; t < kKeys; ++t) {
    ahead[t] = row == 0 ? CacheRowAhead<Element>(args, token + t) : key[t];
  }
  typename V::F acc[kRows][kKeys];
  for (auto& acc_row : acc) {
    for (auto& lane : acc_row) lane = V::Zero();
  }
  for (int64_t d = 0; d < args.q_stride; d += 32) {
    typename V::F k[kKeys];
    for (int t = 0; t < kKeys; ++t) {
      __builtin_prefetch(ahead[t] + d);
      k[t] = Cache::LoadOne(key[t] + d);
    }
    for (int r = 0; r < kRows; ++r) {
      const typename V::F x = Cache::LoadOne(q + r * args.q_stride + d);
      for (int t = 0; t < kKeys; ++t) acc[r][t] = V::Fma(x, k[t], acc[r][t]);
    }
    for (int t = 0; t < kKeys; ++t) k[t] = Cache::LoadOther(key[t] + d);
    for (int r = 0; r < kRows; ++r) {
      const typename V::F x = Cache::LoadOther(q + r * args.q_stride + d);
      for (int t = 0; t < kKeys; ++t) acc[r][t] = V::Fma(x, k[t], acc[r][t]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kKeys; ++t) {
      scores[(row + r) * kPartitionTokens + token + t] = V::SumLanes(acc[r][t]) * args.scale;
    }
  }
}

template <class V, class Cache, int kRows, int kKeys>
inline void ScoreLastRows(const AttentionArgs& args, int row, int token, float* scores) {
  if constexpr (kRows > 0) {
    if (args.rows - row == kRows) {
      return ScoreTile<V, Cache, kRows, kKeys>(args, row, token, scores);
    }
    ScoreLastRows<V, Cache, kRows - 1, kKeys>(args, row, token, scores);
  }
}

template <class V, class Cache, int kKeys>
inline void ScoreRows(const AttentionArgs& args, int token, float* scores) {
  constexpr int kRows = V::kRows;
  int row = 0;
  for (; row + kRows <= args.rows; row += kRows) {
    ScoreTile<V, Cache, kRows, kKeys>(args, row, token, scores);
  }
  ScoreLastRows<V, Cache, kRows - 1, kKeys>(args, row, token, scores);
}

template <class V, class Cache>
inline void Scores(const AttentionArgs& args, float* scores) {
  constexpr int kKeys = V::kPanels;
  int token = 0;
  for (; token + kKeys <= args.num_tokens; token += kKeys) {
    ScoreRows<V, Cache, kKeys>(args, token, scores);
  }
  for (; token < args.num_tokens; ++token) ScoreRows<V, Cache, 1>(args, token, scores);
}

// Scores of row r -> probabilities in place, zero where the row may not look; fills its max and
// sum.
template <class V>
inline void MaskedSoftmaxRow(const AttentionArgs& args, int r, float* row) {
  int visible = args.last[r] - args.first_token + 1;
  visible = visible < 0 ? 0 : visible > args.num_tokens ? args.num_tokens : visible;
  args.max[r] = 0;
  args.sum[r] = 0;
  if (visible > 0) {
    args.max[r] = MaxRow<V>(row, visible);
    args.sum[r] = ExpRow<V>(row, visible, args.max[r], /*padded=*/true);
  }
  for (int t = (visible + 15) / 16 * 16; t < kPartitionTokens; t += 16) {
    V::Store(row + t, V::Zero());
  }
}

// out[r, c .. c + 32 * kChunks) = sum over tokens of probability * value, tokens ascending.
template <class V, class Cache, int kRows, int kChunks>
inline void ValueTile(const AttentionArgs& args, int row, int64_t column, const float* scores) {
  using Element = typename Cache::Element;
  typename V::F one[kRows][kChunks], other[kRows][kChunks];
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kChunks; ++i) one[r][i] = other[r][i] = V::Zero();
  }
  for (int t = 0; t < args.num_tokens; ++t) {
    const Element* value = CacheRow<Element>(args, t) + column;
    for (int i = 0; i < kChunks; ++i) {
      const typename V::F a = Cache::LoadOne(value + 32 * i);
      const typename V::F b = Cache::LoadOther(value + 32 * i);
      for (int r = 0; r < kRows; ++r) {
        const typename V::F p = V::Set(scores[(row + r) * kPartitionTokens + t]);
        one[r][i] = V::Fma(p, a, one[r][i]);
        other[r][i] = V::Fma(p, b, other[r][i]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kChunks; ++i) {
      Cache::Store(args.out + (row + r) * args.out_stride + column + 32 * i, one[r][i],
                   other[r][i]);
    }
  }
}

template <class V, class Cache, int kRows, int kChunks>
inline void ValueLastRows(const AttentionArgs& args, int row, int64_t column, const float* scores) {
  if constexpr (kRows > 0) {
    if (args.rows - row == kRows) {
      return ValueTile<V, Cache, kRows, kChunks>(args, row, column, scores);
    }
    ValueLastRows<V, Cache, kRows - 1, kChunks>(args, row, column, scores);
  }
}

template <class V, class Cache, int kChunks>
inline void ValueRows(const AttentionArgs& args, int64_t column, const float* scores) {
  constexpr int kRows = V::kRows;
  int row = 0;
  for (; row + kRows <= args.rows; row += kRows) {
    ValueTile<V, Cache, kRows, kChunks>(args, row, column, scores);
  }
  ValueLastRows<V, Cache, kRows - 1, kChunks>(args, row, column, scores);
}

template <class V, class Cache>
inline void Values(const AttentionArgs& args, const float* scores) {
  constexpr int kChunks = V::kPanels >= 4 ? 2 : 1;
  int64_t column = 0;
  for (; column + 32 * kChunks <= args.latent_dim; column += 32 * kChunks) {
    ValueRows<V, Cache, kChunks>(args, column, scores);
  }
  for (; column < args.latent_dim; column += 32) ValueRows<V, Cache, 1>(args, column, scores);
}

inline int64_t AttentionScratchBytes(int64_t /*q_stride*/, int64_t /*latent_dim*/) {
  return static_cast<int64_t>(sizeof(float)) * kMaxAttentionRows * kPartitionTokens;
}

template <class V, class Cache>
void Attention(const AttentionArgs& args) {
  float* scores = static_cast<float*>(args.scratch);
  Scores<V, Cache>(args, scores);
  for (int r = 0; r < args.rows; ++r) {
    MaskedSoftmaxRow<V>(args, r, scores + r * kPartitionTokens);
  }
  Values<V, Cache>(args, scores);
}

template <class V>
void AttentionMerge(float* out, float* max, float* sum, const float* part_out, float part_max,
                    float part_sum, int64_t columns) {
  if (part_sum == 0) return;
  if (*sum == 0) {
    for (int64_t i = 0; i < columns; i += 16) {
      const int lanes = Lanes(columns, i);
      V::StoreFirst(out + i, V::LoadFirst(part_out + i, lanes), lanes);
    }
    *max = part_max;
    *sum = part_sum;
    return;
  }
  const float new_max = *max > part_max ? *max : part_max;
  float factors[16];
  V::Store(factors, Exp<V>(V::Sub(V::Set(*max), V::Set(new_max))));
  const float keep = factors[0];
  V::Store(factors, Exp<V>(V::Sub(V::Set(part_max), V::Set(new_max))));
  const float take = factors[0];
  for (int64_t i = 0; i < columns; i += 16) {
    const int lanes = Lanes(columns, i);
    const typename V::F old = V::Mul(V::LoadFirst(out + i, lanes), V::Set(keep));
    V::StoreFirst(out + i, V::Fma(V::LoadFirst(part_out + i, lanes), V::Set(take), old), lanes);
  }
  *sum = *sum * keep + part_sum * take;
  *max = new_max;
}

}  // namespace
}  // namespace sluice::cpu
