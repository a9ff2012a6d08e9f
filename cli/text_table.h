// Text in columns, for the commands that print tables. Pure, any thread.
#pragma once

#include <string>
#include <vector>

namespace sluice::cli {

using TableRow = std::vector<std::string>;

// Columns as wide as their widest cell; the first row is the heading.
std::string FormatTable(const std::vector<TableRow>& rows);

// "0.4s", "37s", "12m", "5h".
std::string FormatAge(double seconds);

}  // namespace sluice::cli
