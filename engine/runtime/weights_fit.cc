#include "engine/runtime/weights_fit.h"

#include "absl/strings/str_format.h"

namespace sluice {

int64_t WeightBytes(const ModelSpec& spec, DType dtype) {
  return spec.TotalParameters() * DTypeBytes(dtype);
}

absl::Status CheckWeightsFit(int64_t weight_bytes, int64_t available_bytes) {
  if (weight_bytes <= available_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the weights take %.1f GB of memory, but %.1f GB are available",
      static_cast<double>(weight_bytes) / 1e9, static_cast<double>(available_bytes) / 1e9));
}

}  // namespace sluice
