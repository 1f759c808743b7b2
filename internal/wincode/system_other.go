//go:build !linux

package wincode

// systemCodes is empty: the errors of Windows have their numbers, and nothing asks other systems.
var systemCodes []errorCode
