// UCX's own benchmark (package ucx-utils): two processes that pass one buffer of one size again and
// again, without checksums, acknowledgements or blocks.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace sluice::bench {

// Bytes per second of active messages of `message_bytes`. NOT_FOUND: ucx_perftest is not installed.
absl::StatusOr<double> UcxPerftestBytesPerSecond(const std::string& tls, uint64_t message_bytes,
                                                 int num_messages);

}  // namespace sluice::bench
