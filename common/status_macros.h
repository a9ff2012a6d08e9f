// Early return on errors, for absl::Status and absl::StatusOr. Ours until the packaged Abseil has
// them.
//
//   SLUICE_RETURN_IF_ERROR(DoIt());
//   SLUICE_ASSIGN_OR_RETURN(auto spec, LoadModelSpec(path));
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace sluice {

// The same status with "context: " before its message, so that an error names its stage.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace sluice

#define SLUICE_MACRO_CONCAT_INNER_(a, b) a##b
#define SLUICE_MACRO_CONCAT_(a, b) SLUICE_MACRO_CONCAT_INNER_(a, b)

#define SLUICE_RETURN_IF_ERROR(expr)                                                       \
  do {                                                                                     \
    if (absl::Status sluice_status_ = (expr); !sluice_status_.ok()) return sluice_status_; \
  } while (false)

#define SLUICE_ASSIGN_OR_RETURN(lhs, expr) \
  SLUICE_ASSIGN_OR_RETURN_IMPL_(SLUICE_MACRO_CONCAT_(sluice_statusor_, __LINE__), lhs, expr)
#define SLUICE_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                  \
  if (!tmp.ok()) return tmp.status();                 \
  lhs = std::move(tmp).value()
