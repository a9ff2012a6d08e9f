// Address of a UCX channel: who it is, a name for people, and where UCX finds its worker. Pure; any
// thread.
//
// On the wire, numbers in this machine's byte order:
//   magic [4], size u32 of the whole address, channel id u64, size u8 of the name, name,
//   worker address, check u64: XXH3-64 over everything before it
// UCX reads a worker address without knowing its length and aborts the process on a version that it
// does not know, so nothing damaged may reach it. The check finds damage, not malice.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

inline constexpr size_t kMaxUcxNameBytes = 128;

struct UcxAddress {
  uint64_t channel_id = 0;  // random, of one UCX worker's life
  std::string name;    // valid UTF-8, at most kMaxUcxNameBytes: what is not is replaced, or cut
  std::string worker;  // as UCX packs it; opaque but for its version
};

std::string EncodeUcxAddress(const UcxAddress& address);
absl::StatusOr<UcxAddress> ParseUcxAddress(absl::string_view bytes);

}  // namespace sluice
