// What a DeepSeek V2/V3 checkpoint must hold for a ModelSpec, and reading it: names, shapes,
// dtypes, and the block scales of fp8 weights. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/weights/checkpoint.h"
#include "modelspec/model_spec.h"

namespace sluice {

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool optional = false;
};

// Without the MTP layers.
std::vector<ExpectedTensor> ExpectedTensors(const ModelSpec& spec);

// INVALID_ARGUMENT naming file and tensor for a missing, surplus or misshapen tensor or a dtype
// that we do not compute with (fp16 overflows in this family; fp8 needs its scales). Ignored: the
// MTP layers behind the last one, and rotary_emb.inv_freq buffers of old exports.
absl::Status ValidateCheckpoint(const ModelSpec& spec, const Checkpoint& checkpoint);

// Rows of a [rows, columns] weight as fp32: exact for f32 and bf16, value times block scale for
// fp8. Copyable; refers to the checkpoint's memory map.
class WeightReader {
 public:
  // REQUIRES: the checkpoint passed ValidateCheckpoint and holds `name`. Vectors have one row.
  WeightReader(const Checkpoint& checkpoint, const std::string& name);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  void ReadRow(int64_t row, float* out) const { Read(row, 0, columns_, out); }
  // out[i] = value at (row, column + i), i < count.
  void Read(int64_t row, int64_t column, int64_t count, float* out) const;
  float At(int64_t row, int64_t column) const {
    float value;
    Read(row, column, 1, &value);
    return value;
  }
  std::vector<float> ReadAll() const;

 private:
  TensorDType dtype_;
  const uint8_t* data_;
  const uint8_t* scales_ = nullptr;  // [ceil(rows / 128), ceil(columns / 128)], f32
  int64_t rows_ = 1;
  int64_t columns_ = 1;
};

}  // namespace sluice
