#include "common/random.h"

#include <sys/random.h>

#include <cerrno>
#include <cstdlib>

namespace sluice {

void FillRandom(void* data, size_t size_bytes) {
  auto* out = static_cast<uint8_t*>(data);
  while (size_bytes > 0) {
    const ssize_t n = getrandom(out, size_bytes, 0);
    if (n < 0) {
      if (errno == EINTR) continue;
      std::abort();
    }
    out += n;
    size_bytes -= static_cast<size_t>(n);
  }
}

uint64_t RandomUint64() {
  uint64_t value = 0;
  FillRandom(&value, sizeof(value));
  return value;
}

}  // namespace sluice
