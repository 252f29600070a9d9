// What a launch did wrong.
#pragma once

#include <string>
#include <vector>

namespace cuda_on_cpu {

// For texts: code at a return address and a function, which Python replaces by their names in the source.
std::string code(const void* return_address);
std::string function(const void* address);
// The current thread, and where it is.
std::string here(const void* return_address);

// Texts are kept once, whatever the threads and offsets in them.
void add_finding(const std::string& text);
std::vector<std::string> take_findings();

}  // namespace cuda_on_cpu
