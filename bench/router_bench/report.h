// Prints the router's figures as a table for people and as JSON for programs. Pure.
#pragma once

#include <string>
#include <vector>

#include "bench/router_bench/scenario.h"

namespace sluice::bench {

struct Row {
  std::string scenario;
  int num_connections = 0;
  std::vector<Figures> runs;  // not empty
};

// Of each figure the median over the runs.
Figures Median(const std::vector<Figures>& runs);

std::string FormatTable(const std::vector<Row>& rows);
std::string FormatJson(const std::vector<Row>& rows);

}  // namespace sluice::bench
