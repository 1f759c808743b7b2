module github.com/opendivert/divert

go 1.26
