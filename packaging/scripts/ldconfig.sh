#!/bin/sh
# Updates the linker's cache after the library is installed or removed.
set -e
ldconfig
