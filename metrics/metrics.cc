// Values are our own atomics, not prometheus-cpp's: its histograms take a lock for each
// observation, and a removed gauge would leave callers with a dangling pointer.
#include "metrics/metrics.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace sluice {
namespace {

[[noreturn]] void AbortOnMisuse(const std::string& message) {
  std::fprintf(stderr, "MetricsRegistry: %s\n", message.c_str());
  std::abort();
}

// One series: a value that can be written into prometheus-cpp's exchange format.
class Series {
 public:
  virtual ~Series() = default;
  virtual void Collect(prometheus::ClientMetric* metric) const = 0;
};

class AtomicCounter final : public Counter, public Series {
 public:
  void Increment(double by) override {
    if (by > 0) value_.fetch_add(by, std::memory_order_relaxed);
  }
  double Value() const override { return value_.load(std::memory_order_relaxed); }
  void Collect(prometheus::ClientMetric* metric) const override { metric->counter.value = Value(); }

 private:
  std::atomic<double> value_ = 0;
};

class AtomicGauge final : public Gauge, public Series {
 public:
  void Set(double value) override { value_.store(value, std::memory_order_relaxed); }
  void Add(double by) override { value_.fetch_add(by, std::memory_order_relaxed); }
  double Value() const override { return value_.load(std::memory_order_relaxed); }
  void Collect(prometheus::ClientMetric* metric) const override { metric->gauge.value = Value(); }

 private:
  std::atomic<double> value_ = 0;
};

// The count is the sum of the buckets, so an export is consistent in itself; an observation that is
// made meanwhile may be in the sum of values one export earlier than in the count.
class AtomicHistogram final : public Histogram, public Series {
 public:
  explicit AtomicHistogram(const std::vector<double>& bounds)
      : bounds_(bounds), counts_(bounds.size() + 1) {}

  void Observe(double value) override {
    if (std::isnan(value)) return;
    // Bounds are inclusive: the first that is not below the value.
    const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
    sum_.fetch_add(value, std::memory_order_relaxed);
    counts_[static_cast<size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
  }

  void Collect(prometheus::ClientMetric* metric) const override {
    prometheus::ClientMetric::Histogram& histogram = metric->histogram;
    uint64_t count = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      count += counts_[i].load(std::memory_order_relaxed);
      histogram.bucket.push_back({count, i < bounds_.size() ? bounds_[i] : HUGE_VAL});
    }
    histogram.sample_count = count;
    histogram.sample_sum = sum_.load(std::memory_order_relaxed);
  }

  const std::vector<double>& bounds() const { return bounds_; }

 private:
  const std::vector<double> bounds_;
  std::vector<std::atomic<uint64_t>> counts_;  // [bounds + 1], the last for values above all bounds
  std::atomic<double> sum_ = 0;
};

struct Family {
  prometheus::MetricType type = prometheus::MetricType::Untyped;
  std::string help;
  std::map<MetricLabels, std::unique_ptr<Series>> series;
};

bool IsName(const std::string& name) {
  return !name.empty() && !absl::ascii_isdigit(name[0]) &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_';
         });
}

void CheckName(const std::string& name, prometheus::MetricType type) {
  if (!IsName(name)) AbortOnMisuse(absl::StrCat("'", name, "' is not a metric name"));
  const bool is_counter = type == prometheus::MetricType::Counter;
  if (absl::EndsWith(name, "_total") != is_counter) {
    AbortOnMisuse(absl::StrCat("'", name, "': counters, and only they, end in _total"));
  }
}

bool SameLabelNames(const MetricLabels& a, const MetricLabels& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& x, const auto& y) { return x.first == y.first; });
}

}  // namespace

struct MetricsRegistry::Impl {
  explicit Impl(MetricLabels labels) : constant_labels(std::move(labels)) {}

  // The series of that name and these labels, made by `make` when it is new.
  template <typename T, typename Make>
  T* Add(const std::string& name, const std::string& help, prometheus::MetricType type,
         const MetricLabels& labels, Make make) ABSL_LOCKS_EXCLUDED(mu) {
    absl::MutexLock lock(&mu);
    const auto [it, is_new] = families.try_emplace(name);
    Family& family = it->second;
    if (is_new) {
      CheckName(name, type);
      family.type = type;
      family.help = help;
    } else if (family.type != type || family.help != help) {
      AbortOnMisuse(absl::StrCat("'", name, "' is registered with two types or helps"));
    }
    for (const auto& [label, value] : labels) {
      if (!IsName(label) || label == "le" || constant_labels.count(label) != 0) {
        AbortOnMisuse(absl::StrCat("'", name, "': label '", label, "' cannot be used"));
      }
    }
    if (!family.series.empty() && !SameLabelNames(family.series.begin()->first, labels)) {
      AbortOnMisuse(absl::StrCat("'", name, "' is registered with two sets of label names"));
    }
    std::unique_ptr<Series>& series = family.series[labels];
    if (series == nullptr) series = make();
    return static_cast<T*>(series.get());
  }

  const MetricLabels constant_labels;

  absl::Mutex mu;
  std::map<std::string, Family> families ABSL_GUARDED_BY(mu);

  // Held while callbacks run, so that none runs twice at a time; never together with `mu`.
  absl::Mutex collect_mu;
  std::vector<std::function<void()>> callbacks ABSL_GUARDED_BY(collect_mu);
};

MetricsRegistry::MetricsRegistry(MetricLabels constant_labels)
    : impl_(std::make_unique<Impl>(std::move(constant_labels))) {}

MetricsRegistry::~MetricsRegistry() = default;

Counter* MetricsRegistry::AddCounter(const std::string& name, const std::string& help,
                                     const MetricLabels& labels) {
  return impl_->Add<AtomicCounter>(name, help, prometheus::MetricType::Counter, labels,
                                   [] { return std::make_unique<AtomicCounter>(); });
}

Gauge* MetricsRegistry::AddGauge(const std::string& name, const std::string& help,
                                 const MetricLabels& labels) {
  return impl_->Add<AtomicGauge>(name, help, prometheus::MetricType::Gauge, labels,
                                 [] { return std::make_unique<AtomicGauge>(); });
}

Histogram* MetricsRegistry::AddHistogram(const std::string& name, const std::string& help,
                                         const std::vector<double>& buckets,
                                         const MetricLabels& labels) {
  if (buckets.empty() || std::adjacent_find(buckets.begin(), buckets.end(),
                                            std::greater_equal<double>()) != buckets.end()) {
    AbortOnMisuse(absl::StrCat("'", name, "': buckets must rise"));
  }
  auto* histogram = impl_->Add<AtomicHistogram>(
      name, help, prometheus::MetricType::Histogram, labels,
      [&buckets] { return std::make_unique<AtomicHistogram>(buckets); });
  if (histogram->bounds() != buckets) {
    AbortOnMisuse(absl::StrCat("'", name, "' is registered with two sets of buckets"));
  }
  return histogram;
}

void MetricsRegistry::RemoveGauge(const std::string& name, const MetricLabels& labels) {
  absl::MutexLock lock(&impl_->mu);
  const auto family = impl_->families.find(name);
  if (family == impl_->families.end()) return;
  family->second.series.erase(labels);
}

void MetricsRegistry::OnCollect(std::function<void()> callback) {
  absl::MutexLock lock(&impl_->collect_mu);
  impl_->callbacks.push_back(std::move(callback));
}

std::string MetricsRegistry::ExportText() {
  {
    absl::MutexLock lock(&impl_->collect_mu);
    for (const std::function<void()>& callback : impl_->callbacks) callback();
  }

  std::vector<prometheus::MetricFamily> families;
  {
    absl::MutexLock lock(&impl_->mu);
    families.reserve(impl_->families.size());
    for (const auto& [name, family] : impl_->families) {
      prometheus::MetricFamily out;
      out.name = name;
      out.help = family.help;
      out.type = family.type;
      for (const auto& [labels, series] : family.series) {
        prometheus::ClientMetric& metric = out.metric.emplace_back();
        for (const MetricLabels* set : {&impl_->constant_labels, &labels}) {
          for (const auto& [label, value] : *set) metric.label.push_back({label, value});
        }
        series->Collect(&metric);
      }
      if (!out.metric.empty()) families.push_back(std::move(out));
    }
  }
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

}  // namespace sluice
