#include "bench/loadgen/plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace sluice::loadgen {
namespace {

constexpr double kWidth = 720, kPanelHeight = 240, kLeft = 80, kRight = 150, kTop = 56, kGap = 64;

struct Line {
  std::string label;
  std::string color;
  std::vector<double> values;
};

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

// The next of 1, 2, 5, 10, ... at or above `value`.
double RoundUp(double value) {
  if (value <= 0) return 1;
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double step : {1.0, 2.0, 5.0, 10.0}) {
    if (step * power >= value * (1 - 1e-9)) return step * power;
  }
  return 10 * power;
}

// Runs stand at equal distances: what is varied usually doubles from one to the next.
std::string Panel(double top, const std::vector<Summary>& runs, const std::string& y_label,
                  const std::vector<Line>& lines) {
  double highest = 0;
  for (const Line& line : lines) {
    for (const double value : line.values) highest = std::max(highest, value);
  }
  highest = RoundUp(highest);
  const double plot_width = kWidth - kLeft - kRight;
  const auto x_of = [&](size_t i) {
    return kLeft + (runs.size() == 1 ? plot_width / 2
                                     : plot_width * static_cast<double>(i) /
                                           static_cast<double>(runs.size() - 1));
  };
  const auto y_of = [&](double value) { return top + kPanelHeight * (1 - value / highest); };

  std::string svg;
  for (int i = 0; i <= 4; ++i) {
    const double value = highest * i / 4;
    svg += absl::StrFormat("<line x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f' stroke='#ddd'/>\n", kLeft,
                           kWidth - kRight, y_of(value), y_of(value));
    svg += absl::StrFormat("<text x='%.1f' y='%.1f' text-anchor='end'>%g</text>\n", kLeft - 8,
                           y_of(value) + 4, value);
  }
  svg += absl::StrFormat("<text x='%.1f' y='%.1f' font-weight='bold'>%s</text>\n", kLeft, top - 10,
                         Escaped(y_label));
  for (size_t i = 0; i < runs.size(); ++i) {
    svg += absl::StrFormat("<text x='%.1f' y='%.1f' text-anchor='middle'>%g</text>\n", x_of(i),
                           top + kPanelHeight + 18, runs[i].x);
  }
  double legend = top + 12;
  for (const Line& line : lines) {
    std::string points;
    for (size_t i = 0; i < line.values.size(); ++i) {
      absl::StrAppendFormat(&points, "%.1f,%.1f ", x_of(i), y_of(line.values[i]));
      svg += absl::StrFormat("<circle cx='%.1f' cy='%.1f' r='3' fill='%s'/>\n", x_of(i),
                             y_of(line.values[i]), line.color);
    }
    svg += absl::StrFormat("<polyline fill='none' stroke='%s' stroke-width='2' points='%s'/>\n",
                           line.color, points);
    svg += absl::StrFormat("<text x='%.1f' y='%.1f' fill='%s'>%s</text>\n", kWidth - kRight + 14,
                           legend, line.color, Escaped(line.label));
    legend += 20;
  }
  return svg;
}

}  // namespace

std::string PlotSvg(const std::vector<Summary>& runs, const std::string& title,
                    const std::string& x_label) {
  std::vector<Line> latency = {
      {"TTFT p50", "#1565c0", {}}, {"TTFT p95", "#90a4ae", {}}, {"ITL p99", "#c62828", {}}};
  std::vector<Line> throughput = {{"output", "#2e7d32", {}}, {"prompt", "#ef6c00", {}}};
  for (const Summary& run : runs) {
    latency[0].values.push_back(run.ttft_ms.p50);
    latency[1].values.push_back(run.ttft_ms.p95);
    latency[2].values.push_back(run.itl_ms.p99);
    throughput[0].values.push_back(run.output_token_throughput);
    throughput[1].values.push_back(run.prompt_token_throughput);
  }
  const double second_top = kTop + kPanelHeight + kGap;
  const double height = second_top + kPanelHeight + 48;
  std::string svg = absl::StrFormat(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %g %g' font-family='Helvetica, Arial, "
      "sans-serif' font-size='12' fill='#222'>\n<rect width='%g' height='%g' fill='#fff'/>\n"
      "<text x='%g' y='22' font-size='15' font-weight='bold'>%s</text>\n",
      kWidth, height, kWidth, height, kLeft, Escaped(title));
  svg += Panel(kTop, runs, "latency, ms", latency);
  svg += Panel(second_top, runs, "throughput, tokens/s", throughput);
  svg += absl::StrFormat("<text x='%g' y='%g' text-anchor='middle'>%s</text>\n</svg>\n",
                         kLeft + (kWidth - kLeft - kRight) / 2, height - 8, Escaped(x_label));
  return svg;
}

}  // namespace sluice::loadgen
