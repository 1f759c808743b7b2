//go:build linux

package capture

import (
	"testing"

	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
