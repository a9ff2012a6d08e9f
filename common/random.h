// Random bits from the kernel, for identities and capabilities (never for sampling). Any thread.
#pragma once

#include <cstdint>

#include "common/ids.h"

namespace sluice {

// Cryptographically strong; aborts if the kernel cannot deliver.
void FillRandom(void* data, size_t size_bytes);

uint64_t RandomUint64();

template <typename Id>  // RequestId or TransferId
Id RandomId128() {
  Id id;
  FillRandom(id.bytes.data(), id.bytes.size());
  return id;
}

}  // namespace sluice
