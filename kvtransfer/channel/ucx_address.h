// Address of a UCX channel: who it is, a name for people, and where UCX finds its worker. Pure; any
// thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

inline constexpr size_t kMaxUcxNameBytes = 128;

struct UcxAddress {
  uint64_t channel_id = 0;  // random, of one UCX worker's life
  std::string name;         // at most kMaxUcxNameBytes
  std::string worker;       // as UCX packs it; opaque
};

std::string EncodeUcxAddress(const UcxAddress& address);
absl::StatusOr<UcxAddress> ParseUcxAddress(absl::string_view bytes);

}  // namespace sluice
