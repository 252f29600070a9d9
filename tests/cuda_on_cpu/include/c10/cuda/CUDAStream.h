// Everything is in the header that rewritten sources include first.
#pragma once

#include "cuda_on_cpu/kernel.h"
