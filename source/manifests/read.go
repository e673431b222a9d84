package manifests

import "github.com/weir-net/weir/policy"

// Read returns the objects of the manifests in the texts. Errors and problems name a text by its key. The error names
// each document that can't be parsed. Other parts that can't be read have the same effect as in the files of a Dir
// (see addPolicy, for example).
func Read(texts map[string][]byte) (policy.Objects, error) {
	d := &Dir{IgnoreBroken: true, files: map[string]*file{}}
	for name, text := range texts {
		f := &file{}
		f.update(parse(text))
		d.files[name] = f
	}
	all, err := d.merge()
	if all == nil {
		return policy.Objects{}, err
	}
	return *all, err
}
