// Counters, gauges and histograms of one process, exported in Prometheus text form. The library
// that writes the text (prometheus-cpp) stays in metrics.cc. Everything here is thread-safe;
// updating a metric is a few atomic operations and never waits. Values are in base units (seconds,
// bytes).
//
// Each room owns one struct that creates its families from a Registry, with every label combination
// pre-created so that counters exist at 0. Names: sluice_<room>_<what>_<unit>[_total];
// docs/metrics.md lists them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace sluice {

using MetricLabels = std::map<std::string, std::string>;

class Counter {
 public:
  virtual ~Counter() = default;
  virtual void Increment(double by = 1) = 0;  // REQUIRES: by >= 0
  virtual double Value() const = 0;
};
class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void Set(double value) = 0;
  virtual void Add(double by) = 0;
  virtual double Value() const = 0;
};
class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void Observe(double value) = 0;  // NaN is ignored
};

// Bucket sets of docs/metrics.md.
const std::vector<double>& TtftBuckets();
const std::vector<double>& ItlBuckets();
const std::vector<double>& E2eBuckets();
const std::vector<double>& StageBuckets();
const std::vector<double>& RecoveryBuckets();
const std::vector<double>& TransferBuckets();
const std::vector<double>& TokenBuckets();
const std::vector<double>& ByteBuckets();

class MetricsRegistry {
 public:
  // `constant_labels` (for example role) go onto every series.
  explicit MetricsRegistry(MetricLabels constant_labels = {});
  ~MetricsRegistry();

  // The returned objects live as long as the registry. Asking twice for the same name and labels
  // gives the same object. A name that breaks the conventions (a counter without _total), or one
  // name with two types, helps, bucket sets or sets of label names, is a bug and aborts.
  Counter* AddCounter(const std::string& name, const std::string& help,
                      const MetricLabels& labels = {});
  Gauge* AddGauge(const std::string& name, const std::string& help,
                  const MetricLabels& labels = {});
  Histogram* AddHistogram(const std::string& name, const std::string& help,
                          const std::vector<double>& buckets, const MetricLabels& labels = {});
  // Ends a gauge's series (a worker that left), and the gauge: nobody may use it any more.
  void RemoveGauge(const std::string& name, const MetricLabels& labels);
  // Runs before each export, to refresh gauges that are read from elsewhere. Must be quick, must
  // not export, and what it captures must outlive the registry.
  void OnCollect(std::function<void()> callback);

  std::string ExportText();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// process_cpu_seconds_total, process_resident_memory_bytes, process_open_fds, process_max_fds,
// process_start_time_seconds, process_threads, and sluice_build_info{version}.
void AddProcessMetrics(MetricsRegistry* registry, const std::string& version);

}  // namespace sluice
