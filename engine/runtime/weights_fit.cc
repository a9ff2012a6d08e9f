#include "engine/runtime/weights_fit.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sluice {
namespace {

std::string Gigabytes(int64_t bytes) {
  return absl::StrFormat("%.1f GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace

int64_t WeightBytes(const ModelSpec& spec, DType dtype) {
  return spec.TotalParameters() * DTypeBytes(dtype);
}

absl::Status CheckWeightsFit(int64_t weight_bytes, int num_processes, int64_t available_bytes) {
  if (weight_bytes <= available_bytes / num_processes) return absl::OkStatus();
  const std::string where =
      num_processes == 1 ? "" : absl::StrCat(" in each of ", num_processes, " workers");
  return absl::ResourceExhaustedError(absl::StrCat("the weights take ", Gigabytes(weight_bytes),
                                                   " of memory", where, ", but ",
                                                   Gigabytes(available_bytes), " are available"));
}

}  // namespace sluice
