//go:build !linux

package wincode

// systemCodes is empty: errors of Windows have their own numbers, and other systems need none.
var systemCodes []errorCode
