// Sixteen fp32 lanes in two AVX2 registers; bf16 products are widened and fused in fp32. See
// vec_portable.h for the contract. Included by the AVX2 translation unit only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace sluice::cpu {
namespace {

struct Avx2 {
  struct F {
    __m256 lo, hi;  // lanes 0-7, 8-15
  };

  static F Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void Store(float* p, F x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
  }
  static F LoadFirst(const float* p, int n) {
    return {_mm256_maskload_ps(p, Mask(n)),
            n > 8 ? _mm256_maskload_ps(p + 8, Mask(n - 8)) : _mm256_setzero_ps()};
  }
  static void StoreFirst(float* p, F x, int n) {
    _mm256_maskstore_ps(p, Mask(n), x.lo);
    if (n > 8) _mm256_maskstore_ps(p + 8, Mask(n - 8), x.hi);
  }
  static F KeepFirst(F x, int n) {
    return {_mm256_and_ps(x.lo, _mm256_castsi256_ps(Mask(n))),
            _mm256_and_ps(x.hi, _mm256_castsi256_ps(Mask(n - 8)))};
  }

  static F Add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static F Sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static F Mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static F Div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static F Max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static F Min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static F Fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static F Round(F x) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.lo, kMode), _mm256_round_ps(x.hi, kMode)};
  }
  static F Pow2(F n) { return {Pow2Half(n.lo), Pow2Half(n.hi)}; }
  static F ZeroIfBelow(F value, F x, F limit) {
    return {_mm256_and_ps(value.lo, _mm256_cmp_ps(x.lo, limit.lo, _CMP_GE_OQ)),
            _mm256_and_ps(value.hi, _mm256_cmp_ps(x.hi, limit.hi, _CMP_GE_OQ))};
  }
  static float SumLanes(F x) {
    const __m256 half = _mm256_add_ps(x.lo, x.hi);
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
  }
  static float MaxLanes(F x) {
    const __m256 half = _mm256_max_ps(x.lo, x.hi);
    __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
  }

  static F LoadBf16(const uint16_t* p) { return {WidenHalf(p), WidenHalf(p + 8)}; }
  static void StoreBf16First(uint16_t* p, F x, int n) {
    // packus works on 128-bit halves, hence the permutation back into lane order.
    const __m256i packed = _mm256_permute4x64_epi64(
        _mm256_packus_epi32(RoundHalf(x.lo), RoundHalf(x.hi)), _MM_SHUFFLE(3, 1, 2, 0));
    if (n >= 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
      return;
    }
    alignas(32) uint16_t lanes[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), packed);
    __builtin_memcpy(p, lanes, static_cast<size_t>(n) * sizeof(uint16_t));
  }

  static F LoadEven(const uint16_t* pairs) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(LoadWords(pairs), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(LoadWords(pairs + 16), 16))};
  }
  static F LoadOdd(const uint16_t* pairs) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(LoadWords(pairs), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(LoadWords(pairs + 16), mask))};
  }
  static void StoreInterleaved(float* p, F even, F odd) {
    StoreInterleavedHalf(p, even.lo, odd.lo);
    StoreInterleavedHalf(p + 16, even.hi, odd.hi);
  }

  static constexpr int kRows = 6;
  static constexpr int kPanels = 1;
  static constexpr int kPanelsOneRow = 4;

 private:
  static __m256i Mask(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
  }
  static __m256 Pow2Half(__m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static __m256 WidenHalf(const uint16_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
  // Round to nearest even into the low 16 bits of each lane; NaN stays NaN.
  static __m256i RoundHalf(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet,
                              _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  }
  static void StoreInterleavedHalf(float* p, __m256 even, __m256 odd) {
    const __m256 low = _mm256_unpacklo_ps(even, odd);  // lanes 0, 1 and 4, 5
    const __m256 high = _mm256_unpackhi_ps(even, odd);
    _mm256_storeu_ps(p, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(p + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
  static __m256i LoadWords(const uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
};

}  // namespace
}  // namespace sluice::cpu
