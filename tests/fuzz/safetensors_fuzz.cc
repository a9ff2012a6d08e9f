// A safetensors file: the reader refuses it, or every tensor it lists lies within the file and is
// as large as its shape says. The file is in memory; the reader maps it like any other.
#include <sys/mman.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "engine/weights/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice;  // NOLINT: a target is one function
  static const int fd = memfd_create("safetensors_fuzz", 0);
  SLUICE_CHECK(fd >= 0 && ftruncate(fd, 0) == 0);
  SLUICE_CHECK(pwrite(fd, data, size, 0) == static_cast<ssize_t>(size));
  const auto file = SafetensorsFile::Open(absl::StrCat("/proc/self/fd/", fd));
  if (!file.ok()) {
    SLUICE_CHECK(!file.status().message().empty());
    return 0;
  }
  const uint64_t data_bytes = size - 8 - (*file)->header().size();
  volatile uint8_t touched = 0;
  for (const TensorInfo& tensor : (*file)->tensors()) {
    SLUICE_CHECK(tensor.begin <= tensor.end && tensor.end <= data_bytes);
    uint64_t expected_bytes = static_cast<uint64_t>(TensorDTypeBytes(tensor.dtype));
    for (int64_t dimension : tensor.shape) {
      SLUICE_CHECK(dimension >= 0);
      expected_bytes *= static_cast<uint64_t>(dimension);
    }
    SLUICE_CHECK(tensor.end - tensor.begin == expected_bytes);
    if (expected_bytes == 0) continue;
    touched = touched + (*file)->Data(tensor)[0];
    touched = touched + (*file)->Data(tensor)[expected_bytes - 1];
  }
  return 0;
}
