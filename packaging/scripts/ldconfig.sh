#!/bin/sh
# The linker learns that the library is there, or gone.
set -e
ldconfig
