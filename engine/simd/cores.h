/* The kind of core that tiles of attention are chosen for: see tuning.h. */
#ifndef LARIAT_CORES_H
#define LARIAT_CORES_H

#include "fetch.h"

enum { CORE_OTHER, CORE_INTEL };
static int CORE UNUSED;

#endif
