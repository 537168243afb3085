// The cheapest extender in Go: all names pass, equal scores. Run with the port as its argument.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
)

type args struct{ NodeNames []string }

type filterResult struct {
	NodeNames   []string
	FailedNodes map[string]string
	Error       string
}

type hostPriority struct {
	Host  string
	Score int64
}

func handle(path string, answer func(names []string) any) {
	http.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		var body args
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(answer(body.NodeNames)); err != nil {
			log.Print(err)
		}
	})
}

func main() {
	handle("/v1/filter", func(names []string) any {
		return filterResult{NodeNames: names, FailedNodes: map[string]string{}}
	})
	handle("/v1/prioritize", func(names []string) any {
		scores := make([]hostPriority, len(names))
		for at, name := range names {
			scores[at] = hostPriority{name, 5}
		}
		return scores
	})
	http.HandleFunc("/livez", func(http.ResponseWriter, *http.Request) {})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
