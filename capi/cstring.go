package main

// putCString writes s and a NUL into dst, the buffer of a C caller, and reports whether s fits. As in the original, s
// still fits if only the NUL does not; s then loses its last byte, because the last byte of a full buffer is always a
// NUL. A longer s is cut; nothing fits an empty dst. The formatters of addresses and filters and the filter compiler fill
// their buffers in this way (specification: packets.md 7).
func putCString[T string | []byte](dst []byte, s T) bool {
	if len(dst) == 0 {
		return false
	}
	n := copy(dst, s)
	dst[min(n, len(dst)-1)] = 0
	return len(s) <= len(dst)
}
