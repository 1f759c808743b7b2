package filter

func (p *parser) membership(t *Test, subject token) bool       { return false }
func (p *parser) prefix(t *Test, subject, literal token) bool  { return false }
func (p *parser) check(t *Test, subject, literal token) *Error { return nil }
