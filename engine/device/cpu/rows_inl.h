// Operations on one row at a time: norms, activations, softmax. For any vector type of
// vec_portable.h's contract; n is any length, the tail is computed in zero-filled lanes.
#pragma once

#include <cstdint>

namespace sluice::cpu {
namespace {

// e^x to about 2 ulp for x in [-87.3, 88]; 0 below. Cody-Waite reduction and a polynomial of
// degree 6.
template <class V>
inline typename V::F Exp(typename V::F x) {
  using F = typename V::F;
  const F lowest = V::Set(-87.3f);
  const F clamped = V::Min(V::Max(x, lowest), V::Set(88.0f));
  const F n = V::Round(V::Mul(clamped, V::Set(1.44269504088896341f)));
  F r = V::Fma(n, V::Set(-0.693359375f), clamped);
  r = V::Fma(n, V::Set(2.12194440e-4f), r);
  F p = V::Set(1.9875691500e-4f);
  p = V::Fma(p, r, V::Set(1.3981999507e-3f));
  p = V::Fma(p, r, V::Set(8.3334519073e-3f));
  p = V::Fma(p, r, V::Set(4.1665795894e-2f));
  p = V::Fma(p, r, V::Set(1.6666665459e-1f));
  p = V::Fma(p, r, V::Set(5.0000001201e-1f));
  p = V::Fma(V::Mul(p, r), r, V::Add(r, V::Set(1.0f)));
  return V::ZeroIfBelow(V::Mul(p, V::Pow2(n)), x, lowest);
}

template <class V>
inline typename V::F Sigmoid(typename V::F x) {
  const typename V::F one = V::Set(1.0f);
  return V::Div(one, V::Add(one, Exp<V>(V::Sub(V::Zero(), x))));
}

inline int Lanes(int64_t n, int64_t i) { return n - i < 16 ? static_cast<int>(n - i) : 16; }

template <class V>
void ScaleF32(const float* x, float factor, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = Lanes(n, i);
    V::StoreFirst(y + i, V::Mul(V::LoadFirst(x + i, lanes), V::Set(factor)), lanes);
  }
}

template <class V>
void ScaleBf16(const float* x, float factor, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = Lanes(n, i);
    V::StoreBf16First(y + i, V::Mul(V::LoadFirst(x + i, lanes), V::Set(factor)), lanes);
  }
}

template <class V>
void RmsNorm(const float* x, const float* weight, float eps, int64_t n, float* y_f32,
             uint16_t* y_bf16) {
  using F = typename V::F;
  F squares = V::Zero();
  for (int64_t i = 0; i < n; i += 16) {
    const F v = V::LoadFirst(x + i, Lanes(n, i));
    squares = V::Fma(v, v, squares);
  }
  const float mean = V::SumLanes(squares) / static_cast<float>(n);
  const F factor = V::Set(1.0f / __builtin_sqrtf(mean + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = Lanes(n, i);
    const F y = V::Mul(V::Mul(V::LoadFirst(x + i, lanes), factor), V::LoadFirst(weight + i, lanes));
    if (y_f32 != nullptr) V::StoreFirst(y_f32 + i, y, lanes);
    if (y_bf16 != nullptr) V::StoreBf16First(y_bf16 + i, y, lanes);
  }
}

template <class V>
inline typename V::F SiluMul(const float* pair) {
  const typename V::F gate = V::Load(pair);
  return V::Mul(V::Mul(gate, Sigmoid<V>(gate)), V::Load(pair + 16));
}

template <class V>
void SiluMulF32(const float* pairs, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    V::StoreFirst(y + i, SiluMul<V>(pairs + 2 * i), Lanes(n, i));
  }
}

template <class V>
void SiluMulBf16(const float* pairs, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    V::StoreBf16First(y + i, SiluMul<V>(pairs + 2 * i), Lanes(n, i));
  }
}

template <class V>
void SigmoidRow(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = Lanes(n, i);
    V::StoreFirst(x + i, Sigmoid<V>(V::LoadFirst(x + i, lanes)), lanes);
  }
}

// x[0, n) becomes e^(x - max) and the sum is returned; lanes up to the next multiple of 16 are zero
// if `padded` (they must then exist).
template <class V>
inline float ExpRow(float* x, int64_t n, float max, bool padded) {
  using F = typename V::F;
  const F shift = V::Set(max);
  F sum = V::Zero();
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = Lanes(n, i);
    const F e = V::KeepFirst(Exp<V>(V::Sub(V::LoadFirst(x + i, lanes), shift)), lanes);
    V::StoreFirst(x + i, e, padded ? 16 : lanes);
    sum = V::Add(sum, e);
  }
  return V::SumLanes(sum);
}

inline float MaxOf(const float* x, int64_t n) {
  float max = x[0];
  for (int64_t i = 1; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

template <class V>
inline float MaxRow(const float* x, int64_t n) {
  if (n < 16) return MaxOf(x, n);
  typename V::F max = V::Load(x);
  int64_t i = 16;
  for (; i + 16 <= n; i += 16) max = V::Max(max, V::Load(x + i));
  // The last 16 once more, overlapping: a maximum does not mind.
  return V::MaxLanes(V::Max(max, V::Load(x + n - 16)));
}

template <class V>
void SoftmaxRow(float* x, int64_t n) {
  const float sum = ExpRow<V>(x, n, MaxRow<V>(x, n), /*padded=*/false);
  ScaleF32<V>(x, 1.0f / sum, x, n);
}

}  // namespace
}  // namespace sluice::cpu
