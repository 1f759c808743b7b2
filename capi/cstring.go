package main

// putCString writes s and a NUL into dst, the buffer of a C caller, and reports whether s fit. As in the
// original, s fits if only the NUL does not; its last byte is lost then, as the last byte of a
// full buffer is always a NUL. What does not fit is left out; an empty dst fits nothing. The formatters of
// addresses and filters and the filter compiler fill their buffers like this (specification: packets.md 7).
func putCString[T string | []byte](dst []byte, s T) bool {
	if len(dst) == 0 {
		return false
	}
	n := copy(dst, s)
	dst[min(n, len(dst)-1)] = 0
	return len(s) <= len(dst)
}
